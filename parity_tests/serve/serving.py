"""A server on a port of its own, in a thread, and ways to ask it."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import time
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any

import openai
import PIL.Image

from porter.serve.app import build_app
from porter.serve.server import make_server
from porter.serve.settings import ServerSettings

SETTINGS = ServerSettings(model_names=("toy", "other-name"), shutdown_seconds=10.0)


class Running:
    """A server that runs until ``stop``."""

    timeout = 60.0  # seconds for an answer

    def __init__(self, omni, **settings) -> None:
        self.settings = replace(SETTINGS, **settings)
        self.app = build_app(omni, self.settings)
        self.server = make_server(self.app, self.settings, "127.0.0.1", 0, quiet=True)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        deadline = time.monotonic() + 20
        while not self.server.started and time.monotonic() < deadline:
            time.sleep(0.01)

    @property
    def engine(self):
        return self.app.state.context.engine

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **more) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=more.pop("api_key", "none"), max_retries=0, **more)

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """One request; a dict or list as body is sent as JSON."""
        headers = dict(headers or {})
        if isinstance(body, dict | list):
            body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        connection = HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def form(self, path: str, fields: list[tuple[str, Any]]) -> Answer:
        """A form; bytes are files."""
        boundary, parts = "porter-boundary", []
        for name, value in fields:
            file = isinstance(value, bytes)
            head = f'Content-Disposition: form-data; name="{name}"' + ('; filename="in.png"' if file else "")
            parts.append(
                f"--{boundary}\r\n{head}\r\n\r\n".encode() + (value if file else str(value).encode()) + b"\r\n"
            )
        body = b"".join(parts) + f"--{boundary}--\r\n".encode()
        return self.ask("POST", path, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})

    def idle(self, seconds: float = 10.0) -> bool:
        """Whether nothing runs or waits, after a while at most."""
        deadline = time.monotonic() + seconds
        while (self.engine.running or self.engine.waiting) and time.monotonic() < deadline:
            time.sleep(0.01)
        return not (self.engine.running or self.engine.waiting)

    def stop(self) -> None:
        self.server.handle_exit(15, None)
        self.thread.join(30)
        with contextlib.suppress(OSError):
            self.socket.close()


class Answer:
    """What came back."""

    def __init__(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.status, self.data = status, data
        self.headers = {name.lower(): value for name, value in headers.items()}

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> tuple[int, str | None]:
        """Status and field of an error in OpenAI's form."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["code"] == self.status and error["message"]
        return self.status, error["param"]


def picture(data: str | bytes) -> PIL.Image.Image:
    """A picture from base64 or from bytes."""
    return PIL.Image.open(io.BytesIO(base64.b64decode(data) if isinstance(data, str) else data))


def png(size=(64, 64), mode="RGB", **more) -> bytes:
    """A file with a picture of noise."""
    buffer = io.BytesIO()
    PIL.Image.effect_noise(size, 60).convert(mode).save(buffer, "PNG", **more)
    return buffer.getvalue()
