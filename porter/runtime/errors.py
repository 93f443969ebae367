"""The errors that mean "the input was bad", each one clear message.

A command line catches ``PorterRuntimeError`` and prints its text; everything else is a bug.
"""

from __future__ import annotations

from collections.abc import Iterable

# An error stays readable: past this many names per kind, the rest is counted.
_MAX_NAMES = 50


class PorterRuntimeError(ValueError):
    """Base of the errors a user can cause and can mend."""


class RequestError(PorterRuntimeError):
    """A request that cannot be served: wrong type, unknown argument, missing or broken input."""


class ConfigError(PorterRuntimeError):
    """A setting that is unknown, or that this runtime or this machine cannot honour."""


class ModelNotFoundError(PorterRuntimeError):
    """The model folder, hub repository, configuration file or port does not exist."""


class CheckpointError(PorterRuntimeError):
    """A checkpoint that does not fit its model.

    Attributes:
        missing: parameters or persistent buffers that no checkpoint tensor filled.
        unexpected: checkpoint tensors that no parameter or buffer took.
        misshapen: descriptions ``"name: checkpoint [..], model [..]"`` of tensors of the wrong shape.
        loaded: names that were filled nevertheless, so that an outer loader can go on checking.
        complete: whether every tensor was looked at; if not, there may be more that is wrong.
    """

    def __init__(
        self,
        message: str = "",
        *,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        misshapen: Iterable[str] = (),
        loaded: Iterable[str] = (),
        complete: bool = True,
    ) -> None:
        self.headline = message
        self.missing = sorted(set(missing))
        self.unexpected = sorted(set(unexpected))
        self.misshapen = sorted(set(misshapen))
        self.loaded = set(loaded)
        self.complete = complete
        super().__init__(self._render())

    def _render(self) -> str:
        parts = [self.headline] if self.headline else []
        if self.missing:
            parts.append(
                f"not in the checkpoint ({len(self.missing)}): {_names(self.missing)}. "
                "Use the checkpoint of this very model, complete; or convert the pipeline again if its source changed."
            )
        if self.unexpected:
            parts.append(
                f"in the checkpoint but not in the model ({len(self.unexpected)}): {_names(self.unexpected)}. "
                "The port lacks these tensors or names them otherwise: convert it again from the diffusers version "
                "that wrote the checkpoint."
            )
        if self.misshapen:
            parts.append(
                f"of the wrong shape ({len(self.misshapen)}): {_names(self.misshapen, '; ')}. "
                "Check that config.json belongs to these weights."
            )
        if not self.complete:
            parts.append("Loading stopped there: the other tensors were not checked.")
        return "\n".join(parts)

    def with_prefix(self, prefix: str) -> CheckpointError:
        """The same error seen from the module that holds the failing one under ``prefix`` (no trailing dot)."""
        dot = f"{prefix}." if prefix else ""
        return CheckpointError(
            self.headline,
            missing=(dot + name for name in self.missing),
            unexpected=(dot + name for name in self.unexpected),
            misshapen=(dot + name for name in self.misshapen),
            loaded=(dot + name for name in self.loaded),
            complete=self.complete,
        )


class CheckpointFileError(CheckpointError):
    """A checkpoint whose files cannot be read; what is in them was not compared with the model."""


def _names(names: list[str], separator: str = ", ") -> str:
    shown = separator.join(names[:_MAX_NAMES])
    return shown if len(names) <= _MAX_NAMES else f"{shown}{separator}and {len(names) - _MAX_NAMES} more"
