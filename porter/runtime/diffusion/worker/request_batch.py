"""The argument of a pipeline's ``forward``: requests that run together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from porter.runtime.diffusion.data import DiffusionOutput
from porter.runtime.diffusion.request import OmniDiffusionRequest
from porter.runtime.inputs.data import OmniDiffusionSamplingParams, OmniPromptType


@dataclass
class DiffusionRequestBatch:
    """Requests of one ``forward`` call, in order; the runtime itself always passes one."""

    requests: list[OmniDiffusionRequest]

    @property
    def num_reqs(self) -> int:
        return len(self.requests)

    @property
    def request_ids(self) -> list[str]:
        return [request.request_id for request in self.requests]

    @property
    def prompts(self) -> list[OmniPromptType]:
        return [request.prompt for request in self.requests]

    @property
    def sampling_params_list(self) -> list[OmniDiffusionSamplingParams]:
        return [request.sampling_params for request in self.requests]

    @property
    def sampling_params(self) -> OmniDiffusionSamplingParams:
        """Sampling parameters of the only request.

        Raises:
            ValueError: there are several requests; use ``sampling_params_list``.
        """
        if len(self.requests) != 1:
            raise ValueError(f"a batch of {len(self.requests)} requests has no single sampling_params")
        return self.requests[0].sampling_params

    @property
    def request_id(self) -> str:
        return self.requests[0].request_id

    def is_dummy_run(self) -> bool:
        """Whether the batch is a warm-up."""
        return self.requests[0].is_dummy_run()

    def get(self, request_id: str) -> OmniDiffusionRequest | None:
        """The request of that id, or None."""
        return next((request for request in self.requests if request.request_id == request_id), None)

    def collate_request_generators(
        self, num_outputs_per_prompt: int, default_generator: torch.Generator | list[torch.Generator] | None
    ) -> torch.Generator | list[torch.Generator] | None:
        """One generator per output over all requests, or the default if no request has one.

        Raises:
            ValueError: only some requests have one, or a list has the wrong length.
        """
        given = [params.generator for params in self.sampling_params_list]
        if all(generator is None for generator in given):
            return default_generator
        generators: list[torch.Generator] = []
        for generator in given:
            if generator is None:
                raise ValueError("some of the batched requests have a generator and some have none")
            if isinstance(generator, list):
                if len(generator) != num_outputs_per_prompt:
                    raise ValueError(f"{len(generator)} generators for {num_outputs_per_prompt} outputs per prompt")
                generators += generator
            else:
                generators += [generator] * num_outputs_per_prompt
        return generators

    def collate_request_tensors(self, attr: str, default_tensor: torch.Tensor | None) -> torch.Tensor | None:
        """The sampling parameter ``attr`` of all requests, concatenated; the default if none has it."""
        return self.collate_tensors([getattr(p, attr) for p in self.sampling_params_list], attr, default_tensor)

    @staticmethod
    def collate_tensors(
        tensors: list[torch.Tensor | None], name: str, default_tensor: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Concatenate along the first dimension; the default if all are None."""
        alike = _require_alike(tensors, name)
        return default_tensor if alike is None else torch.cat(alike, dim=0)

    @staticmethod
    def collate_prompt_tensors(
        tensors: list[torch.Tensor | None], name: str, default_tensor: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Stack along a new first dimension; the default if all are None."""
        alike = _require_alike(tensors, name)
        return default_tensor if alike is None else torch.stack(alike, dim=0)

    @staticmethod
    def get_prompt_field(prompt: OmniPromptType, name: str) -> Any:
        """A field of a prompt dict or of its ``additional_information``; the first item if it is a list."""
        if isinstance(prompt, str):
            return None
        value = prompt.get(name)
        if value is None:
            value = (prompt.get("additional_information") or {}).get(name)
        if isinstance(value, list):
            return value[0] if value else None
        return value

    @staticmethod
    def get_prompt_field_with_aliases(prompt: OmniPromptType, names: Sequence[str]) -> Any:
        """The first of several names that the prompt has."""
        values = (DiffusionRequestBatch.get_prompt_field(prompt, name) for name in names)
        return next((value for value in values if value is not None), None)

    @staticmethod
    def collate_prompt_fields(
        prompts: list[OmniPromptType], name: str, default_tensor: torch.Tensor | None
    ) -> torch.Tensor | None:
        """One tensor field of all prompts, stacked."""
        return DiffusionRequestBatch.collate_prompt_field_map(prompts, {name: default_tensor})[name]

    @staticmethod
    def collate_prompt_field_map(
        prompts: list[OmniPromptType],
        field_defaults: Mapping[str, torch.Tensor | None],
        field_aliases: Mapping[str, Sequence[str]] | None = None,
    ) -> dict[str, torch.Tensor | None]:
        """Several tensor fields of all prompts, each stacked, each under its name or an alias."""
        batch = DiffusionRequestBatch
        aliases = field_aliases or {}
        return {
            name: batch.collate_prompt_tensors(
                [batch.get_prompt_field_with_aliases(prompt, aliases.get(name, (name,))) for prompt in prompts],
                name,
                default,
            )
            for name, default in field_defaults.items()
        }


def split_diffusion_output_by_request(
    result: DiffusionOutput, req: DiffusionRequestBatch, *, num_outputs_per_prompt: int
) -> list[DiffusionOutput]:
    """Cut a batched output into one per request, along the first dimension.

    Raises:
        ValueError: ``num_outputs_per_prompt`` is not positive.
    """
    if num_outputs_per_prompt <= 0:
        raise ValueError(f"num_outputs_per_prompt must be positive, got {num_outputs_per_prompt}")
    size = num_outputs_per_prompt
    return [
        DiffusionOutput(
            output=_slice(result.output, index * size, (index + 1) * size),
            error=result.error,
            finished=result.finished,
            stage_durations=result.stage_durations,
            peak_memory_mb=result.peak_memory_mb,
        )
        for index in range(req.num_reqs)
    ]


def _slice(value: Any, start: int, stop: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_slice(item, start, stop) for item in value)
    if isinstance(value, (list, np.ndarray, torch.Tensor)):
        return value[start:stop]
    return value


def _require_alike(tensors: list[torch.Tensor | None], name: str) -> list[torch.Tensor] | None:
    given = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
    if not given and all(tensor is None for tensor in tensors):
        return None
    if len(given) != len(tensors):
        raise ValueError(f"some of the batched requests have {name} and some have none")
    kinds = {(tuple(tensor.shape), tensor.dtype, tensor.device) for tensor in given}
    if len(kinds) > 1:
        raise ValueError(f"{name} of the batched requests differ in shape, dtype or device: {sorted(map(str, kinds))}")
    return given
