"""The diffusers backend: any pipeline of diffusers, unchanged, behind the engine's request interface."""

from porter.runtime.diffusion.models.diffusers_adapter.pipeline_diffusers_adapter import DiffusersAdapterPipeline

__all__ = ["DiffusersAdapterPipeline"]
