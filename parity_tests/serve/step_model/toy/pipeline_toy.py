"""Pictures out of noise and a text, whole or step by step."""

import zlib
from typing import ClassVar

import numpy as np
import PIL.Image
import torch
from torch import nn

from porter.runtime.diffusion.data import DiffusionOutput
from porter.runtime.diffusion.model_loader.diffusers_loader import DiffusersPipelineLoader
from porter.runtime.diffusion.models.progress_bar import ProgressBarMixin
from porter.runtime.diffusion.utils.tf_utils import get_transformer_config_kwargs
from porter.runtime.diffusion.worker.utils import StepRequestState
from porter.runtime.model_executor.models.utils import AutoWeightsLoader

from .toy_transformer import ToyTransformer2DModel


def get_toy_post_process_func(od_config):
    def post_process_func(images, sampling_params=None):
        if sampling_params.output_type == "latent":
            return images
        pixels = (images.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        return [PIL.Image.fromarray(np.ascontiguousarray(picture)) for picture in pixels]

    return post_process_func


class Steps(nn.Module, ProgressBarMixin):
    """The parts of a call, without the methods by which the engine finds them."""

    transformer_cls: ClassVar[type] = ToyTransformer2DModel

    def __init__(self, *, od_config, prefix=""):
        super().__init__()
        kwargs = get_transformer_config_kwargs(od_config.tf_model_config, ToyTransformer2DModel)
        self.transformer = ToyTransformer2DModel(od_config=od_config, **kwargs)
        self.weights_sources = [
            DiffusersPipelineLoader.ComponentSource(
                model_or_path=od_config.model, subfolder="transformer", revision=None, prefix="transformer."
            )
        ]
        self.calls = []

    def load_weights(self, weights):
        return AutoWeightsLoader(self).load_weights(weights)

    def _text(self, prompt):
        generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
        return torch.randn(self.transformer.dim, generator=generator)

    def _prepare(
        self,
        state,
        prompt=None,
        negative_prompt=None,
        height=64,
        width=64,
        num_inference_steps=4,
        guidance_scale=2.0,
        num_images_per_prompt=1,
        image=None,
        generator=None,
    ):
        sampling, fields = state.sampling, state.prompt
        fields = {"prompt": fields} if isinstance(fields, str) else fields
        if fields.get("prompt") == "boom":
            raise RuntimeError("boom")
        height, width = sampling.height or height, sampling.width or width
        if height % 8 or width % 8:
            raise ValueError(f"`height` and `width` have to be divisible by 8 but are {height} and {width}.")
        count, device = sampling.num_outputs_per_prompt, torch.device("cpu")
        state.latents = torch.randn(
            count, self.transformer.channels, height // 8, width // 8, generator=sampling.generator, device=device
        )
        pictures = (fields.get("multi_modal_data") or {}).get("image")
        for picture in pictures if isinstance(pictures, list) else [pictures] if pictures is not None else []:
            shrunk = np.asarray(picture.convert("RGBA").resize((width // 8, height // 8)), dtype=np.float32)
            state.latents = state.latents * 0.5 + torch.from_numpy(shrunk / 127.5 - 1).permute(2, 0, 1)
        state.timesteps = torch.linspace(1, 0, (sampling.num_inference_steps or num_inference_steps) + 1)[:-1]
        texts = [self._text(fields.get(name) or "") for name in ("prompt", "negative_prompt")]
        state.extra["texts"] = torch.stack(texts).expand(count, 2, -1)
        scale = sampling.guidance_scale if sampling.guidance_scale_provided else guidance_scale
        state.extra["guidance_scale"] = float(scale)
        return state

    def _denoise(self, states):
        self.calls.append([state.request_id for state in states])
        latents = torch.cat([state.latents for state in states])
        rows = [state.latents.shape[0] for state in states]
        times = torch.cat([state.timesteps[state.step_index].expand(n) for state, n in zip(states, rows)])
        texts = torch.cat([state.extra["texts"] for state in states])
        scales = torch.cat([torch.full((n, 1, 1, 1), s.extra["guidance_scale"]) for s, n in zip(states, rows)])
        wanted, unwanted = (self.transformer(latents, times * 1000, texts[:, i]) for i in (0, 1))
        return unwanted + scales * (wanted - unwanted)

    def _advance(self, state, noise_pred):
        state.latents = state.latents - noise_pred / state.total_steps
        state.step_index += 1

    def _decode(self, state):
        picture = state.latents[:, :3]
        if state.sampling.output_type == "latent":
            return DiffusionOutput(output=state.latents)
        return DiffusionOutput(output=picture.repeat_interleave(8, 2).repeat_interleave(8, 3).tanh())

    def forward(self, req):
        [request] = req.requests
        state = self._prepare(StepRequestState(request.request_id, request.sampling_params, request.prompt))
        with self.progress_bar(total=state.total_steps) as bar:
            for _ in range(state.total_steps):
                self._advance(state, self._denoise([state]))
                bar.update()
        return self._decode(state)


class ToyAlonePipeline(Steps):
    """Step by step, a request at a time."""

    _dit_modules: ClassVar[list[str]] = ["transformer"]

    supports_step_execution = True
    prepare_encode = Steps._prepare

    def denoise_step(self, input_batch, *, states=None, **kwargs):
        return self._denoise(states)

    def step_scheduler(self, state, noise_pred, **kwargs):
        self._advance(state, noise_pred)

    def post_decode(self, state, **kwargs):
        return self._decode(state)


class ToyMixingPipeline(ToyAlonePipeline):
    """Its transformer mixes the samples of a batch: no two requests may share a call."""

    def __init__(self, *, od_config, prefix=""):
        super().__init__(od_config=od_config, prefix=prefix)
        self.transformer.register_forward_hook(lambda module, args, output: output - output.mean(0, keepdim=True) / 2)


class ToyPipeline(ToyAlonePipeline):
    """Step by step, requests together."""

    supports_step_batching = True


class ToyWholePipeline(Steps):
    """All steps in one call."""

    def forward(
        self,
        req,
        prompt=None,
        negative_prompt=None,
        height=64,
        width=64,
        num_inference_steps=4,
        guidance_scale=2.0,
        num_images_per_prompt=1,
        image=None,
        generator=None,
    ):
        return super().forward(req)
