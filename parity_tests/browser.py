"""Pages in a Chromium without a window, and what they ask for."""

from __future__ import annotations

from playwright.sync_api import BrowserContext, Page


class Visitor:
    """Opens pages in tabs.

    Attributes:
        requests: addresses that the pages asked for, in order.
        problems: what they wrote to the console as an error, and exceptions that nothing caught.
    """

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.requests: list[str] = []
        self.problems: list[str] = []
        context.set_default_timeout(60_000)
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("weberror", lambda error: self.problems.append(str(error.error)))
        context.on("console", self._note)

    def open(self, address: str) -> Page:
        """A new tab with an address."""
        page = self.context.new_page()
        page.goto(address)
        return page

    def _note(self, message: object) -> None:
        if message.type in ("error", "assert"):  # type: ignore[attr-defined]
            self.problems.append(message.text)  # type: ignore[attr-defined]
