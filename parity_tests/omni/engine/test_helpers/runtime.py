"""Stands in for vLLM-Omni's helper of this name: who runs requests, offline only and on a tiny checkpoint."""

from __future__ import annotations

from typing import Any, NamedTuple


class OmniServerParams(NamedTuple):
    """How a server is started."""

    model: str
    server_args: list[str] | None = None


class OmniServer:
    """A running server."""

    model: str


class OpenAIClientHandler:
    """Asks a server."""


class OmniRunnerHandler:
    """Asks an engine in this process.

    Args:
        omni: the engine.
    """

    def __init__(self, omni: Any) -> None:
        self.omni = omni

    def send_diffusion_request(self, request: dict[str, Any]) -> Any:
        """Run a request in a size that a tiny video model can make, and look at what comes out."""
        params = request["sampling_params"]
        params.height = params.width = 32
        params.num_frames, params.max_sequence_length = 9, 16
        [result] = self.omni.generate({"prompt": request["prompt"]}, params)
        assert result.final_output_type == "video" and len(result.images)
        return result
