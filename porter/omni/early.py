"""What vLLM-Omni should know about ports before it loads plugins: what comes out, what goes in.

It settles the output type of a model while it reads the command line, and its general plugins are loaded much later.
Both tables that it asks are dictionaries; they are replaced by ones that ask porter about a pipeline they do not hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from porter.omni.card import card
from porter.omni.choice import serves


class AskingTable(dict[str, Any]):
    """A dictionary whose ``get`` asks for what is not in it, and keeps the answer.

    Args:
        held: what is in it.
        ask: the value for a pipeline class; None if there is none.
        replace: whether what is held about a name is asked for anew, once.
    """

    def __init__(self, held: dict[str, Any], ask: Callable[[str, Any], Any], replace: Callable[[str], bool]) -> None:
        super().__init__(held)
        self._ask, self._replace = ask, replace
        self._asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a name, asked for at most once."""
        if key not in self._asked and (key not in self or self._replace(key)):
            self._asked.add(key)
            found = self._ask(key, super().get(key))
            if found is not None:
                self[key] = found
        return super().get(key, default)


def announce_models() -> None:
    """Put the tables in place; calling it again changes nothing."""
    from vllm_omni.diffusion import model_metadata
    from vllm_omni.model_extras import registry as extras

    for module, name, ask in (
        (model_metadata, "_DIFFUSION_MODEL_METADATA", _metadata),
        (extras, "_EXTRA_SPECS", _extra_spec),
    ):
        held = getattr(module, name)
        if not isinstance(held, AskingTable):
            setattr(module, name, AskingTable(held, ask, serves))


def _metadata(name: str, held: Any) -> Any:
    """How a model is served: its output type, whether pictures go in."""
    from vllm_omni.diffusion.model_metadata import DiffusionModelMetadata

    port = card(name) if serves(name) else None
    if port is None:
        return None
    return DiffusionModelMetadata(supports_multimodal_inputs=port.image_input, final_output_type=port.kind)


def _extra_spec(name: str, held: Any) -> Any:
    """The arguments that may stand in the body of a request, besides those that the server knows itself."""
    from vllm_omni.inputs.data import OmniDiffusionSamplingParams

    port = card(name) if serves(name) else None
    if port is None:
        return None
    known = set(OmniDiffusionSamplingParams.__dataclass_fields__) | {"prompt", "negative_prompt", "image"}
    extra = frozenset(port.arguments - known)
    return {**(held or {}), "extra_body_params": extra | frozenset((held or {}).get("extra_body_params", ()))}
