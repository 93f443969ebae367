"""The page, the model, health and metrics."""

from __future__ import annotations

import base64
import hashlib
import time
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from porter.serve.context import Context, context_of
from porter.serve.errors import ApiError

router = APIRouter()
PAGE = Path(__file__).with_name("page.html")
# The page holds everything it needs; a browser is told to load nothing else, and to run no script but the page's own.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src '{script}'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_STARTED = int(time.time())


@cache
def _page() -> tuple[str, str]:
    """The page and its content security policy."""
    text = PAGE.read_text("utf-8")
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return text, _POLICY.format(script=f"sha256-{digest}")


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """A page to try the model."""
    text, policy = _page()
    return HTMLResponse(text, headers={"Content-Security-Policy": policy})


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    """Whether requests can be taken."""
    is_alive = context_of(request).engine.is_alive
    return JSONResponse({"status": "healthy" if is_alive else "unhealthy"}, 200 if is_alive else 503)


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The model, under each of its names, and what it takes."""
    context = context_of(request)
    return {"object": "list", "data": [_card(context, name) for name in context.settings.model_names]}


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """One model."""
    context = context_of(request)
    if name not in context.settings.model_names:
        raise ApiError(404, f"model: this server runs {context.model!r}", "model")
    return _card(context, name)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """What Prometheus reads."""
    return Response(context_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _card(context: Context, name: str) -> dict[str, Any]:
    omni = context.omni
    return {
        "id": name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "porter",
        "root": context.model,
        "parent": None,
        "pipeline": omni.name,
        "kind": omni.kind,
        "backend": omni.od_config.diffusion_load_format,
        "step_execution": context.engine.is_stepwise,
        "parameters": context.calls.names,
    }
