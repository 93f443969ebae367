"""One diffusion request."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from porter.runtime.inputs.data import OmniDiffusionSamplingParams, OmniPromptType

DUMMY_DIFFUSION_REQUEST_ID = "dummy_req_id"


def resolve_video_num_frames(num_frames: int | None, *, default_num_frames: int, is_dummy_run: bool) -> int:
    """The frame count: the caller's, or the pipeline's default if the caller gave none.

    vllm-omni must read 1 as "not given"; here "not given" is None, so an explicit 1 counts.
    """
    del is_dummy_run
    return default_num_frames if num_frames is None else num_frames


@dataclass
class OmniDiffusionRequest:
    """A prompt with its sampling parameters, which this object owns and completes.

    ``guidance_scale`` None becomes 1.0 with ``guidance_scale_provided=False`` (the same for the second one, which
    follows the first): a pipeline must ask ``guidance_scale_provided`` before it believes the value. Without seed
    and generator a random seed is drawn, with ``seed_provided=False``.

    Raises:
        ValueError: the request id is empty.
    """

    prompt: OmniPromptType
    sampling_params: OmniDiffusionSamplingParams
    request_id: str
    prepared_layout: Any | None = None
    batch_compatibility_key: tuple[Any, ...] | None = None
    use_step_execution: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.request_id, str) or not self.request_id:
            raise ValueError("request_id must be a non-empty string")
        params = self.sampling_params
        if params.generator is None and params.seed is None:
            params.seed = random.randint(0, 2**31 - 1)
            params.seed_provided = False

        if params.guidance_scale is None:
            params.guidance_scale = 1.0
        else:
            params.guidance_scale_provided = True
        has_negative = not isinstance(self.prompt, str) and bool(self.prompt.get("negative_prompt"))
        if params.guidance_scale > 1.0 and has_negative:
            params.do_classifier_free_guidance = True

        if params.guidance_scale_2 is None:
            params.guidance_scale_2 = params.guidance_scale
        else:
            params.guidance_scale_2_provided = True

    def is_dummy_run(self) -> bool:
        """Whether this is a warm-up request rather than a user's."""
        return self.is_dummy_run_request_id(self.request_id)

    @classmethod
    def is_dummy_run_request_id(cls, request_id: str | None) -> bool:
        """Whether a request id marks a warm-up request."""
        dummy = DUMMY_DIFFUSION_REQUEST_ID
        return request_id is not None and (request_id == dummy or request_id.startswith(f"{dummy}/"))
