"""The app: one model behind its endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI

import porter
from porter.runtime import Omni
from porter.serve import errors, routes_audio, routes_chat, routes_images, routes_meta, routes_videos
from porter.serve.context import Context
from porter.serve.middleware import Gate
from porter.serve.settings import ServerSettings
from porter.serve.videos import VideoStore


def build_app(omni: Omni, settings: ServerSettings) -> FastAPI:
    """An app that serves a loaded model.

    Its ``state`` has the ``context`` and, while it runs, the ``videos``. When it ends, what runs is finished within
    ``settings.shutdown_seconds`` or cancelled.
    """
    context = Context(omni, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.videos = VideoStore(context)
        try:
            yield
        finally:
            told = getattr(app.state, "told_to_stop", None) or time.monotonic()
            left = max(0.0, told + settings.shutdown_seconds - time.monotonic())
            await asyncio.to_thread(context.engine.close, True, left)
            await app.state.videos.close()

    app = FastAPI(title="porter", version=porter.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.context = context
    errors.install(app)
    for module in (routes_meta, routes_images, routes_videos, routes_audio, routes_chat):
        app.include_router(module.router)
    app.add_middleware(Gate, settings=settings, metrics=context.metrics)
    return app
