"""The process: uvicorn around the app, and a clean end."""

from __future__ import annotations

import math
import threading
import time
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from porter.serve.settings import ServerSettings

# Seconds to answer those whose requests were cancelled, after their current step.
_ANSWERING = 10


class Server(uvicorn.Server):
    """Refuses new requests from the moment it is told to stop, and finishes the others or cancels them in time."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, seconds: float) -> None:
        super().__init__(config)
        self._app, self._seconds = app, seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        state: Any = self._app.state
        if getattr(state, "told_to_stop", None) is None:
            state.told_to_stop = time.monotonic()
            state.context.engine.begin_closing()
            # Those who wait are answered, before uvicorn closes their connections.
            timer = threading.Timer(self._seconds, state.context.engine.cancel_all)
            timer.daemon = True
            timer.start()
        super().handle_exit(sig, frame)


def make_server(app: FastAPI, settings: ServerSettings, host: str, port: int, quiet: bool = False) -> Server:
    """A server that is ready to ``run()``."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning" if quiet else "info",
        timeout_graceful_shutdown=math.ceil(settings.shutdown_seconds) + _ANSWERING,
        timeout_keep_alive=30,
        server_header=False,
        h11_max_incomplete_event_size=64 * 1024,
    )
    return Server(config, app, settings.shutdown_seconds)
