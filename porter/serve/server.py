"""The process: uvicorn around the app, and a clean end."""

from __future__ import annotations

import time
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from porter.serve.settings import ServerSettings


class Server(uvicorn.Server):
    """Refuses new requests from the moment it is told to stop, and finishes the others."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        state: Any = self._app.state
        state.told_to_stop = getattr(state, "told_to_stop", None) or time.monotonic()
        state.context.engine.begin_closing()
        super().handle_exit(sig, frame)


def make_server(app: FastAPI, settings: ServerSettings, host: str, port: int, quiet: bool = False) -> Server:
    """A server that is ready to ``run()``."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning" if quiet else "info",
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
        timeout_keep_alive=30,
        server_header=False,
        h11_max_incomplete_event_size=64 * 1024,
    )
    return Server(config, app)
