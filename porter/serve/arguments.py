"""The fields of a request as the call of the pipeline that is served."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from porter.parity.request import PER_PROMPT, to_request
from porter.runtime import Omni, OmniDiffusionSamplingParams
from porter.serve.errors import bad_request
from porter.serve.protocol.common import parse_size
from porter.serve.settings import ServerSettings

FRAME_COUNTS = ("num_frames", "frames", "video_length")
FRAME_RATES = ("fps", "frame_rate")
# Ways in which pipelines say when a sound ends, and how long it lasts.
SOUND_ENDS = ("audio_end_in_s",)
SOUND_LENGTHS = ("audio_length_in_s", "audio_duration", "duration", "seconds")
# Fields that a model may ignore, as their documentation has always said.
MAY_BE_IGNORED = frozenset({"true_cfg_scale"})
# The engine's own, or nothing that JSON could hold.
_CLOSED = frozenset({"generator", "output_type", "return_dict", "latents", "callback", "callback_steps"})


class CallBuilder:
    """Makes calls of one model, within the limits of a server.

    Args:
        omni: the model.
        settings: the limits.
    """

    def __init__(self, omni: Omni, settings: ServerSettings) -> None:
        self.settings, self.name = settings, omni.name
        kinds = {name: item.kind for name, item in omni.parameters.items()}
        self.is_open = inspect.Parameter.VAR_KEYWORD in kinds.values()
        self.names = [name for name, kind in kinds.items() if kind is not inspect.Parameter.VAR_KEYWORD]
        self.required = {
            name for name in self.names if omni.parameters[name].default is inspect.Parameter.empty and name != "prompt"
        }
        self.works_on_pictures = bool(getattr(omni.pipeline, "support_image_input", False))

    def takes(self, name: str) -> bool:
        """Whether the pipeline has an argument."""
        return name in self.names

    def build(
        self,
        fields: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
        media: Mapping[str, Any] | None = None,
        extra_field: str = "extra_params",
    ) -> tuple[Any, OmniDiffusionSamplingParams]:
        """The prompt and the sampling parameters of a call.

        Args:
            fields: by name; None counts as not given.
            extra: arguments by the pipeline's own names.
            media: pictures by the pipeline's own names.
            extra_field: what ``extra`` is called in the request.

        Raises:
            ApiError: the pipeline does not take a field, or a value is out of range; the error names the field.
        """
        given = {name: value for name, value in fields.items() if value is not None}
        seed, device = given.pop("seed", None), given.pop("generator_device", None)
        self._check(given)
        arguments = dict(self._arguments(given))
        for name, value in (extra or {}).items():
            field = f"{extra_field}.{name}"
            if name in _CLOSED or name.startswith("callback") or name.endswith("_embeds"):
                raise bad_request(f"{field} cannot be set in a request", field)
            if name not in self.names and not self.is_open:
                raise bad_request(f"{field}: {self.name} takes {self._list()}", field)
            if name in arguments:
                raise bad_request(f"{field} is given twice", field)
            arguments[name] = value
        self._check(arguments)
        for name, value in (media or {}).items():
            if name not in self.names:
                raise bad_request(f"{name}: {self.name} takes no such picture; it takes {self._list()}", name)
            arguments[name] = value
        missing = sorted(self.required - arguments.keys())
        if self.works_on_pictures and self.takes("image") and "image" not in arguments:
            missing = ["image"]
        if missing:
            raise bad_request(f"{missing[0]}: {self.name} needs it", missing[0])
        prompt, params = to_request(arguments)
        params.seed = seed
        params.generator_device = self._device(device)
        return prompt, params

    def _arguments(self, given: dict[str, Any]) -> Iterable[tuple[str, Any]]:
        for field, value in given.items():
            name: str | None = field
            if field == "prompt" and value == "" and not self.takes("prompt"):
                continue  # bodies have to have one, models need not
            if field in ("n", "num_outputs_per_prompt"):
                name = self._first(lambda item: PER_PROMPT.fullmatch(item) is not None)
                if name is None and value == 1:
                    continue
            elif field == "num_frames":
                name = self._first(FRAME_COUNTS.__contains__)
            elif field == "fps":
                name = self._first(FRAME_RATES.__contains__)
                if name is None:
                    continue  # the rate of the file, then
            elif field == "size":
                width, height = parse_size(value)
                if not (self.takes("width") and self.takes("height")):
                    raise bad_request(f"size: {self.name} takes no size", "size")
                yield from (("width", width), ("height", height))
                continue
            if name is None or (name not in self.names and not self.is_open):
                if field in MAY_BE_IGNORED:
                    continue
                raise bad_request(f"{field}: {self.name} takes no {field}; it takes {self._list()}", field)
            yield name, value

    def _check(self, given: Mapping[str, Any]) -> None:
        """Refuse what is out of range."""
        limits = self.settings
        for name, value in given.items():
            if "prompt" in name and isinstance(value, str) and len(value) > limits.max_prompt_length:
                raise bad_request(f"{name}: longer than {limits.max_prompt_length} characters", name)
        width, height = given.get("width"), given.get("height")
        if given.get("size") is not None:
            width, height = parse_size(given["size"])
        for name, value in (("width", width), ("height", height)):
            if isinstance(value, int) and value < limits.min_side:
                field = "size" if given.get("size") is not None else name
                raise bad_request(f"{field}: less than {limits.min_side} pixels", field)
            if isinstance(value, int) and value > limits.max_generated_image_size:
                raise bad_request(f"{name}: more than {limits.max_generated_image_size} pixels", name)
        if isinstance(width, int) and isinstance(height, int) and width * height > limits.max_generated_image_size:
            field = "size" if given.get("size") is not None else "width"
            most = limits.max_generated_image_size
            raise bad_request(f"{field}: {width}x{height} is more than {most} pixels, the server's limit", field)
        for name in FRAME_COUNTS:
            frames = given.get(name)
            if isinstance(frames, int) and frames > limits.max_num_frames:
                raise bad_request(f"{name}: more than {limits.max_num_frames} frames, the server's limit", name)

    def _first(self, matches: Any) -> str | None:
        return next(filter(matches, self.names), None)

    def _list(self) -> str:
        return ", ".join(name for name in self.names if name not in _CLOSED and not name.startswith("callback"))

    @staticmethod
    def _device(device: str | None) -> str | None:
        if device is None:
            return None
        try:
            torch.Generator(device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise bad_request(f"generator_device: {device!r} cannot be used here", "generator_device") from error
        return device
