"""What happens to every request before an endpoint sees it: the key, the size of the body, the count."""

from __future__ import annotations

import hmac
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from porter.serve.errors import ApiError, error_response
from porter.serve.metrics import Metrics
from porter.serve.settings import ServerSettings

_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
# Reachable without a key: the page itself, which asks for one, and what a load balancer asks.
_OPEN = frozenset({"/", "/health"})


class Gate:
    """Checks keys and sizes, and counts.

    Args:
        app: what lies behind.
        settings: keys and sizes.
        metrics: where to count.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self._keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).extend(_HEADERS)
            await send(message)

        try:
            headers = Headers(scope=scope)
            refusal = self._refusal(scope["path"], headers)
            if refusal is not None:
                await error_response(refusal)(scope, receive, counted_send)
            else:
                await self.app(scope, self._limited(receive), counted_send)
        finally:
            # Only names of endpoints that there are: a label for every path that somebody tries would grow for ever.
            endpoint = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(endpoint, str(status)).inc()
            self.metrics.seconds.labels(endpoint).observe(time.perf_counter() - started)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        if self._keys and path not in _OPEN:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            given = key.strip().encode()
            fits = [hmac.compare_digest(given, known) for known in self._keys]
            if scheme.lower() != "bearer" or not any(fits):
                return ApiError(401, "a valid API key is needed", None, {"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if not length.isdigit():
            return ApiError(400, "Content-Length is no number")
        if int(length) > self.settings.max_body_bytes:
            return self._too_large()
        return None

    def _limited(self, receive: Receive) -> Receive:
        """A body without a length, or with a wrong one, is counted while it comes."""
        total = 0

        async def limited() -> Message:
            nonlocal total
            message: Any = await receive()
            if message["type"] == "http.request":
                total += len(message.get("body", b""))
                if total > self.settings.max_body_bytes:
                    error = self._too_large()
                    raise HTTPException(error.status, error.message)
            return message

        return limited

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self.settings.max_body_bytes} bytes")
