"""A headless Chromium for tests of pages: started without a port, driven over a pipe by the DevTools protocol.

    with Browser() as browser:
        page = browser.page()
        page.goto("http://localhost:8000/")
        page.click("button#go")
        page.wait_for("document.title == 'done'")

Needs no package but a Chromium; ``make browser`` installs Debian's. ``python parity_tests/browser.py`` says which one
is found, and exits with 1 if there is none.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Nothing is asked of the network but what the page asks for.
OPTIONS = (
    "--headless",
    "--remote-debugging-pipe",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--window-size=1280,900",
)
# Chromium reads commands from descriptor 3 and writes to 4; a process of its own puts them there.
LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
# Where an element is that can be clicked, once it has been scrolled into sight.
CENTRE = """
(selector => {
  const found = document.querySelector(selector);
  if (!found) throw new Error("no element " + selector);
  found.scrollIntoView({block: "center", inline: "center", behavior: "instant"});
  const box = found.getBoundingClientRect();
  if (!box.width || !box.height) throw new Error(selector + " is not visible");
  return [box.x + box.width / 2, box.y + box.height / 2];
})(%s)
"""
SECONDS = 20.0


class BrowserError(AssertionError):
    """There is no browser, it gave an error, or what was waited for did not come."""


def find_browser() -> str:
    """The path of a Chromium: ``PORTER_CHROMIUM``, the first on the path, or one unpacked into ``.chromium``.

    Raises:
        BrowserError: there is none.
    """
    wanted = os.environ.get("PORTER_CHROMIUM")
    names = [wanted] if wanted else [*NAMES, str(Path(__file__).parent.parent / ".chromium" / "chromium")]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise BrowserError(
            f"no {wanted or 'Chromium'} found: `make browser` installs one (as root, on Debian); or name one in "
            "PORTER_CHROMIUM"
        )
    return found


class Browser:
    """A running Chromium with an empty profile; a context manager, or :meth:`close` it."""

    def __init__(self) -> None:
        program = find_browser()
        self._profile = tempfile.mkdtemp(prefix="porter-browser-")
        commands_out, self._commands = (_high(end) for end in os.pipe())
        self._replies, replies_in = (_high(end) for end in os.pipe())
        # Chromium's sandbox refuses to run as root, which is what a container is; the pages are our own.
        options = [*OPTIONS, *(["--no-sandbox"] if os.geteuid() == 0 else []), f"--user-data-dir={self._profile}"]
        launch = [sys.executable, "-I", "-S", "-c", LAUNCH, str(commands_out), str(replies_in)]
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [*launch, program, *options, "about:blank"],
            pass_fds=(commands_out, replies_in),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        os.close(commands_out)
        os.close(replies_in)
        self._rest, self._number = b"", 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._pages: dict[str, Page] = {}
        self.version = self.send("Browser.getVersion")["product"]

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def page(self) -> Page:
        """A new, empty tab."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session)
        page._start()
        return page

    def close(self) -> None:
        """End it and remove its profile."""
        try:
            self.send("Browser.close", seconds=5)
            self._process.wait(5)
        except (BrowserError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        for end in (self._commands, self._replies):
            os.close(end)
        self._log.close()
        shutil.rmtree(self._profile, ignore_errors=True)

    def send(
        self, method: str, values: dict[str, Any] | None = None, session: str = "", seconds: float = SECONDS
    ) -> dict[str, Any]:
        """A command of the DevTools protocol and its result.

        Raises:
            BrowserError: Chromium reports an error, or says nothing in time.
        """
        number = self.post(method, values, session)
        end = time.monotonic() + seconds
        while number not in self._answers:
            self._read(end - time.monotonic(), method)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def post(self, method: str, values: dict[str, Any] | None = None, session: str = "") -> int:
        """Give a command without waiting for its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values or {}}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        return self._number

    def _read(self, seconds: float, what: str) -> None:
        """Take what Chromium has to say; events go to their pages."""
        if seconds <= 0 or not select.select([self._replies], [], [], seconds)[0]:
            raise BrowserError(f"no answer to {what}; Chromium said: {self._said()}")
        data = os.read(self._replies, 1 << 20)
        if not data:
            raise BrowserError(f"Chromium ended at {what}: {self._said()}")
        *messages, self._rest = (self._rest + data).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            elif message.get("sessionId") in self._pages:
                self._pages[message["sessionId"]]._take(message["method"], message["params"])

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2000:]


class Page:
    """A tab.

    Attributes:
        requests: addresses that the page asked for, in order.
        problems: what the page wrote to the console as an error, and exceptions that nothing caught.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._canned: dict[str, str] = {}
        self._loaded = 0

    def send(self, method: str, **values: Any) -> dict[str, Any]:
        """A command of the DevTools protocol for this tab; see :meth:`Browser.send`."""
        return self._browser.send(method, values, self._session)

    def goto(self, address: str | Path) -> None:
        """Load an address, or a file, and wait until it is there."""
        loaded = self._loaded
        url = address.absolute().as_uri() if isinstance(address, Path) else address
        error = self.send("Page.navigate", url=url).get("errorText")
        if error:
            raise BrowserError(f"{url}: {error}")
        end = time.monotonic() + SECONDS
        while self._loaded == loaded:
            self._browser._read(end - time.monotonic(), url)

    def evaluate(self, expression: str) -> Any:
        """The value (as JSON has it) of a JavaScript expression; promises are waited for."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description", details["text"]))
        return found["result"].get("value")

    def wait_for(self, expression: str, seconds: float = SECONDS) -> Any:
        """Wait until an expression is true; returns its value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            if time.monotonic() > end:
                raise BrowserError(f"{expression} did not become true; problems of the page: {self.problems}")
            time.sleep(0.02)
        return value

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse, where it is seen."""
        x, y = self.evaluate(CENTRE % json.dumps(selector))
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def type(self, selector: str, text: str) -> None:
        """Type a text into a field, in the place of what it holds."""
        field = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{field}.focus(), {field}.select && {field}.select(), true")
        self.send("Input.insertText", text=text)

    def choose_files(self, selector: str, *paths: Path) -> None:
        """Choose the files of a file field."""
        document = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path.absolute()) for path in paths])

    def text(self, selector: str = "body") -> str:
        """What can be read in an element: hidden parts do not count."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")

    def answer(self, prefix: str, body: str) -> None:
        """Answer addresses that begin with ``prefix`` here, in the place of the network, with a page."""
        self._canned[prefix] = base64.b64encode(body.encode()).decode()
        self.send("Fetch.enable", patterns=[{"urlPattern": f"{start}*"} for start in self._canned])

    def screenshot(self, path: Path) -> None:
        """Save what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def _start(self) -> None:
        for domain in ("Page", "Runtime", "Network", "DOM"):
            self.send(f"{domain}.enable")

    def _take(self, event: str, values: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded += 1
        elif event == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            details = values["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Runtime.consoleAPICalled" and values["type"] in ("error", "assert"):
            self.problems.append(" ".join(str(item.get("value", item.get("description"))) for item in values["args"]))
        elif event == "Fetch.requestPaused":
            self._respond(values["requestId"], values["request"]["url"])

    def _respond(self, request: str, url: str) -> None:
        body = next(text for prefix, text in self._canned.items() if url.startswith(prefix))
        headers = [{"name": "content-type", "value": "text/html; charset=utf-8"}]
        answer = {"requestId": request, "responseCode": 200, "responseHeaders": headers, "body": body}
        self._browser.post("Fetch.fulfillRequest", answer, self._session)


def _high(descriptor: int) -> int:
    """The descriptor under a number that nothing else wants."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(descriptor)
    return moved


if __name__ == "__main__":
    try:
        print(find_browser())
    except BrowserError as problem:
        sys.exit(str(problem))
