"""Bad input and hostile input: an error in OpenAI's form that names the field, and a server that goes on."""

from __future__ import annotations

import base64
import http.server
import io
import json
import socket
import struct
import threading
import zlib

import openai
import PIL.Image
import pytest
from serving import png

from porter.serve import fetch as fetching
from porter.serve.fetch import FetchError, FetchPolicy, fetch, is_public

GENERATE, EDIT, CHAT = "/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"
URI = "data:image/png;base64,"


def uri(data: bytes) -> str:
    return URI + base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def guarded(toy, start):
    """A server with narrow limits."""
    return start(
        toy("ToyPipeline"),
        max_body_bytes=200_000,
        max_generated_image_size=256 * 256,
        max_prompt_length=100,
        max_input_pixels=128 * 128,
        max_input_images=2,
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x" * 101}, "prompt"),
        ({"prompt": "x", "negative_prompt": "x" * 101}, "negative_prompt"),
        ({"prompt": "x", "moon": 1}, "moon"),
        ({"prompt": "x", "model": "../../etc/passwd"}, "model"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "n": 11}, "n"),
        ({"prompt": "x", "n": True, "size": "x"}, "size"),
        ({"prompt": "x", "size": "64"}, "size"),
        ({"prompt": "x", "size": "0x64"}, "size"),
        ({"prompt": "x", "size": "-64x64"}, "size"),
        ({"prompt": "x", "size": "1x64"}, "size"),
        ({"prompt": "x", "size": "63x64"}, "size"),
        ({"prompt": "x", "size": "264x256"}, "size"),
        ({"prompt": "x", "size": "99999999999x64"}, "size"),
        ({"prompt": "x", "num_inference_steps": 0}, "num_inference_steps"),
        ({"prompt": "x", "num_inference_steps": 201}, "num_inference_steps"),
        ({"prompt": "x", "guidance_scale": 21}, "guidance_scale"),
        ({"prompt": "x", "seed": 2**63}, "seed"),
        ({"prompt": "x", "seed": "x"}, "seed"),
        ({"prompt": "x", "generator_device": "moon"}, "generator_device"),
        ({"prompt": "x", "response_format": "url"}, "response_format"),
        ({"prompt": "x", "output_format": "gif"}, "output_format"),
        ({"prompt": "x", "output_compression": 101}, "output_compression"),
        ({"prompt": "x", "layers": 1}, "layers"),
        ({"prompt": "x", "layers": 3}, "layers"),
        ({"prompt": "x", "strength": 0.5}, "strength"),
        ({"prompt": "x", "stream": True}, "stream"),
        ({"prompt": "x", "lora": {"path": "/etc"}}, "lora"),
        ({"prompt": "x", "background": "transparent"}, "background"),
        ({"prompt": "x", "extra_params": [1]}, "extra_params"),
        ({"prompt": "x", "extra_params": {"moon": 1}}, "extra_params.moon"),
        ({"prompt": "x", "extra_params": {"generator": 1}}, "extra_params.generator"),
        ({"prompt": "x", "extra_params": {"height": 4096, "width": 4096}}, "width"),
        ({"prompt": "x", "size": "64x64", "extra_params": {"height": 64}}, "extra_params.height"),
        ({"prompt": "x", "seed": 1, "extra_args": {"a": 1}, "extra_params": {"a": 1}}, "extra_args.a"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else None,
)
def test_a_bad_field_is_named(guarded, body, param):
    assert guarded.ask("POST", GENERATE, body).error == (400, param)


def test_what_is_no_json_is_refused(guarded):
    for data in (b"{", b"", b"\xff\xfe", b"[1, 2]", b'"x"', b"[" * 50_000):
        answer = guarded.ask("POST", GENERATE, data, {"Content-Type": "application/json"})
        assert answer.status == 400 and "message" in answer.json["error"]
    assert guarded.ask("POST", GENERATE, b"prompt=x", {"Content-Type": "text/plain"}).status in (400, 415)
    assert guarded.ask("POST", EDIT, b"nonsense", {"Content-Type": "multipart/form-data"}).status == 400
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    assert guarded.ask("POST", EDIT, b"--x\r\nContent-Disp", broken).status in (400, 422)
    assert guarded.ask("POST", EDIT, {"prompt": "x"}).error == (422, "image")
    assert guarded.ask("POST", EDIT, b"{", {"Content-Type": "application/json"}).status == 400


def test_paths_and_methods_that_are_not_there(guarded):
    for path in (
        "/moon",
        "/v1/../../etc/passwd",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/v1/videos/..%2f..%2fx/content",
    ):
        assert guarded.ask("GET", path).error[0] == 404
    assert guarded.ask("GET", GENERATE).error[0] == 405
    assert guarded.ask("POST", "/v1/videos", {"prompt": "x"}).error == (404, None)
    assert 'endpoint="other"' in guarded.ask("GET", "/metrics").data.decode()


def test_a_body_that_is_too_large_is_not_read(guarded):
    assert guarded.ask("POST", GENERATE, {"prompt": "x" * 300_000}).error == (413, None)
    # One that hides its size: in chunks.
    with socket.create_connection(("127.0.0.1", guarded.port), 10) as sock:
        head = ["Host: x", "Content-Type: application/json", "Transfer-Encoding: chunked", "\r\n"]
        sock.sendall("\r\n".join([f"POST {GENERATE} HTTP/1.1", *head]).encode())
        chunk = b"%x\r\n%s\r\n" % (50_000, b" " * 50_000)
        try:
            for _ in range(6):
                sock.sendall(chunk)
        except OSError:
            pass
        assert b" 413 " in sock.recv(4096).split(b"\r\n")[0]


def bomb(side: int = 20_000) -> bytes:
    """A PNG of a few kilobytes that unfolds to 400 megapixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress((b"\0" + b"\0" * (side // 8)) * 2000, 9)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"no picture", 400),
        (b"", 400),
        (png()[:200], 400),
        (png((200, 200)), 413),
        (bomb(), 413),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 400),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400),
    ],
    ids=["text", "empty", "cut off", "too many pixels", "bomb", "postscript", "svg"],
)
def test_bad_pictures_are_refused(guarded, data, status):
    assert guarded.form(EDIT, [("prompt", "x"), ("image", data)]).error == (status, "image")
    content = [{"type": "image_url", "image_url": {"url": uri(data)}}]
    messages = [{"role": "user", "content": content}]
    assert guarded.ask("POST", CHAT, {"messages": messages}).error == (status, "messages")


def test_pictures_of_every_kind_are_read(guarded):
    for mode in ("1", "L", "P", "RGBA", "CMYK"):
        buffer = io.BytesIO()
        PIL.Image.new("RGB", (32, 32), "red").convert(mode).save(buffer, "TIFF" if mode == "none" else _format(mode))
        fields = [("prompt", "x"), ("image[]", buffer.getvalue()), ("num_inference_steps", 1), ("size", "64x64")]
        assert guarded.form(EDIT, fields).status == 200
    three = [("prompt", "x"), *[("image", png())] * 3]
    assert guarded.form(EDIT, three).error == (400, "image")
    assert guarded.form(EDIT, [("prompt", "x"), ("moon", png())]).error == (400, "moon")
    assert guarded.form(EDIT, [("prompt", "x"), ("mask", png()), ("image", png())]).error == (400, "mask_image")
    assert guarded.form(EDIT, [("prompt", "x"), ("prompt", "y"), ("image", png())]).error == (400, "prompt")


def _format(mode: str) -> str:
    return "JPEG" if mode == "CMYK" else "PNG"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "http://127.0.0.1/x.png",
        "http://localhost:22/x.png",
        "http://[::1]/x.png",
        "http://[::ffff:127.0.0.1]/x.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/x.png",
        "http://2130706433/x.png",
        "http://0x7f.1/x.png",
        "http://0/x.png",
        "http://user:password@example.org/x.png",
        "ftp://example.org/x.png",
        "gopher://127.0.0.1:6379/_INFO",
        "http://",
        "http://exa mple/",
        "https://nowhere.invalid/x.png",
        "data:text/html,<script>",
        "data:image/png;base64,@@@@",
        "../../etc/passwd",
    ],
)
def test_urls_lead_nowhere_inside(guarded, url):
    assert guarded.ask("POST", EDIT, {"prompt": "x", "url": url}).error == (400, "image")
    content = [{"type": "image_url", "image_url": {"url": url}}]
    assert guarded.ask("POST", CHAT, {"messages": [{"role": "user", "content": content}]}).error == (400, "messages")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::a00:1", False),
    ],
)
def test_which_addresses_are_public(address, public):
    assert is_public(address) is public


@pytest.fixture
def elsewhere():
    """A server that pictures could be fetched from."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/picture":
                self._answer(200, png())
            elif self.path == "/large":
                self._answer(200, b"x" * 5000)
            elif self.path == "/endless":
                self.send_response(200)
                self.end_headers()
                try:
                    while True:
                        self.wfile.write(b"x" * 1000)
                except OSError:
                    pass
            elif self.path.startswith("/to?"):
                self.send_response(302)
                self.send_header("Location", self.path[4:])
                self.end_headers()
            else:
                self._answer(404, b"")

        def _answer(self, status, data):
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_what_is_allowed_is_fetched_within_limits(elsewhere, tmp_path):
    policy = FetchPolicy(domains=frozenset({"127.0.0.1"}), seconds=5, max_bytes=4000)
    small = FetchPolicy(domains=policy.domains, seconds=5, max_bytes=10_000_000)
    assert fetch(f"{elsewhere}/picture", small)[:4] == b"\x89PNG"
    assert fetch(f"{elsewhere}/to?/picture", small)[:4] == b"\x89PNG"
    for path, words in (
        ("/large", "larger"),
        ("/endless", "larger"),
        ("/gone", "status 404"),
        ("/to?/to?/to?/to?/to?/x", "too often|status"),
        ("/to?http://localhost:1/x", "nothing may be fetched from localhost"),
        ("/to?file:///etc/passwd", "not with file"),
    ):
        with pytest.raises(FetchError, match=words):
            fetch(elsewhere + path, policy)
    (tmp_path / "in.png").write_bytes(b"here")
    (tmp_path / "link.png").symlink_to("/etc/passwd")
    local = FetchPolicy(local_path=tmp_path)
    assert fetch(f"file://{tmp_path}/in.png", local) == b"here"
    for path in (f"{tmp_path}/../../etc/passwd", "/etc/passwd", f"{tmp_path}/link.png", f"{tmp_path}/%2e%2e/x"):
        with pytest.raises(FetchError):
            fetch(f"file://{path}", local)


def test_a_redirect_is_checked_like_the_first_url(elsewhere, monkeypatch):
    # The first host passes as public; what it redirects to does not.
    first = iter([True, False])
    monkeypatch.setattr(fetching, "is_public", lambda address: next(first))
    with pytest.raises(FetchError, match="127.0.0.1 is not public"):
        fetch(f"{elsewhere}/to?{elsewhere}/picture", FetchPolicy(seconds=5))


def test_a_connection_goes_to_the_address_that_was_checked(elsewhere, monkeypatch):
    looked_up = []

    def lookup(host, port, *_, **__):
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr(fetching.socket, "getaddrinfo", lookup)
    monkeypatch.setattr(fetching, "is_public", lambda address: True)
    port = elsewhere.rpartition(":")[2]
    assert fetch(f"http://pictures.example:{port}/picture", FetchPolicy(seconds=5))[:4] == b"\x89PNG"
    assert looked_up[0] == "pictures.example" and "pictures.example" not in looked_up[1:]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.image_url.url"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": "x"}], "stream": True}, "stream"),
        ({"messages": [{"role": "user", "content": "x"}], "moon": 1}, "moon"),
        ({"messages": [{"role": "user", "content": "x"}], "extra_body": {"moon": 1}}, "extra_body.moon"),
        ({"messages": [{"role": "user", "content": "x"}], "seed": 1, "extra_body": {"seed": 2}}, "extra_body.seed"),
        ({"messages": [{"role": "user", "content": "x"}], "extra_args": {"moon": 1}}, "extra_args.moon"),
        ({"messages": [{"role": "user", "content": "x"}], "size": "huge"}, "size"),
    ],
)
def test_bad_conversations_are_refused(guarded, body, param):
    assert guarded.ask("POST", CHAT, body).error == (400, param)
    messages = [{"role": "user", "content": "x"}]
    assert guarded.ask("POST", CHAT, {"messages": messages, "model": "moon"}).error == (404, "model")


def test_an_error_inside_tells_nothing_of_the_inside(guarded):
    answer = guarded.ask("POST", GENERATE, {"prompt": "boom"})
    assert answer.error == (500, None)
    assert "Traceback" not in answer.data.decode() and "/" not in answer.json["error"]["message"]
    assert guarded.ask("POST", GENERATE, {"prompt": "x"}).status == 200


def test_a_key_is_needed_where_there_is_one(toy, start):
    locked = start(toy("ToyWholePipeline"), api_keys=("secret", "other"))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"Authorization": "Bearer"}):
        for path in ("/v1/models", "/metrics"):
            answer = locked.ask("GET", path, None, headers)
            assert answer.error == (401, None) and answer.headers["www-authenticate"] == "Bearer"
    assert locked.ask("GET", "/health").status == locked.ask("GET", "/").status == 200
    with pytest.raises(openai.AuthenticationError):
        locked.client(api_key="wrong").models.list()
    for key in ("secret", "other"):
        assert locked.client(api_key=key).images.generate(prompt="x", size="64x64").data
