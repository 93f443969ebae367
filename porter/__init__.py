"""porter: compiles diffusers pipelines into native vLLM-Omni models and proves that both compute the same."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Port", "__version__", "convert"]

if TYPE_CHECKING:
    from porter.port import Port, convert


def __getattr__(name: str) -> Any:
    # `import porter` stays cheap: the converter is imported when it is asked for.
    if name in ("convert", "Port"):
        from porter import port

        return getattr(port, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
