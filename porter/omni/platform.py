"""vLLM-Omni's platform of a machine without an accelerator, so that ports can be tested in the engine anywhere."""

from __future__ import annotations

import os

import psutil
import torch
from vllm.platforms.cpu import CpuPlatform
from vllm_omni.platforms.interface import OmniPlatform, OmniPlatformEnum

ATTENTION = "porter.omni.attention.CpuSDPABackend"
_SUPPORTED_BACKENDS = ("TORCH_SDPA", "SDPA")
# How many ranks a machine may hold: they share its cores, and a test of parallelism needs a few.
MAX_RANKS = 8


class CpuOmniPlatform(OmniPlatform, CpuPlatform):
    """Diffusion on the CPU, over gloo; attention by torch."""

    _omni_enum = OmniPlatformEnum.OOT
    device_type = "cpu"
    dist_backend = "gloo"

    @classmethod
    def get_diffusion_attn_backend_cls(
        cls, selected_backend: str | None, head_size: int, allow_trtllm_default: bool = False
    ) -> str:
        """The attention backend.

        Raises:
            ValueError: a backend was selected that needs a GPU.
        """
        if selected_backend is not None and selected_backend.upper() not in _SUPPORTED_BACKENDS:
            raise ValueError(f"the attention backend {selected_backend} does not run on a CPU: select TORCH_SDPA")
        return ATTENTION

    @classmethod
    def get_diffusion_worker_cls(cls) -> str:
        """The worker; what it needs on a CPU is replaced on the way, since only here it is about to be used."""
        from porter.omni.attention import run_on_cpu
        from porter.omni.linear import keep_products_apart, keep_weights
        from porter.omni.output_thread import install

        install()
        run_on_cpu()
        keep_weights()
        keep_products_apart()
        return "vllm_omni.diffusion.worker.diffusion_worker.DiffusionWorker"

    @classmethod
    def get_torch_device(cls, local_rank: int | None = None) -> torch.device:
        """The same for every rank."""
        return torch.device("cpu")

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """There is only one."""

    @classmethod
    def get_device_count(cls) -> int:
        """The number of ranks that may be started."""
        return MAX_RANKS

    @classmethod
    def get_device_version(cls) -> str | None:
        """None."""
        return None

    @classmethod
    def supports_torch_inductor(cls) -> bool:
        """Compiling is not tried: a C++ compiler may be missing, and tests would wait for it."""
        return False

    @classmethod
    def synchronize(cls) -> None:
        """Nothing runs asynchronously."""

    @classmethod
    def empty_cache(cls) -> None:
        """There is no cache."""

    @classmethod
    def get_free_memory(cls, device: torch.device | None = None) -> int:
        """Bytes that are available."""
        return int(psutil.virtual_memory().available)

    @classmethod
    def get_device_memory(cls, device: torch.device | None = None) -> tuple[int, int]:
        """Bytes that are available, and all."""
        memory = psutil.virtual_memory()
        return int(memory.available), int(memory.total)

    @classmethod
    def reset_peak_memory_stats(cls, device: torch.device | None = None) -> None:
        """The system keeps the peak; it cannot be reset."""

    @classmethod
    def max_memory_allocated(cls, device: torch.device | None = None) -> int:
        """Bytes that this process holds."""
        return int(psutil.Process(os.getpid()).memory_info().rss)

    @classmethod
    def max_memory_reserved(cls, device: torch.device | None = None) -> int:
        """Bytes that this process holds."""
        return cls.max_memory_allocated(device)
