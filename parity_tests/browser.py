"""Pages in a Chromium without a window, and what they ask for."""

from __future__ import annotations

from playwright.sync_api import BrowserContext, ConsoleMessage, Page, WebError


class Visitor:
    """Opens pages in tabs.

    Attributes:
        requests: addresses that the pages asked for, in order.
        exceptions: those of scripts that nothing caught.
        problems: these, and what scripts wrote to the console as an error.
    """

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.requests: list[str] = []
        self.exceptions: list[str] = []
        self.problems: list[str] = []
        context.set_default_timeout(60_000)
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("weberror", self._take_error)
        context.on("console", self._take_message)

    def open(self, address: str) -> Page:
        """A new tab with an address."""
        page = self.context.new_page()
        page.goto(address)
        return page

    def _take_error(self, error: WebError) -> None:
        self.exceptions.append(str(error.error))
        self.problems.append(str(error.error))

    def _take_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "assert"):
            self.problems.append(message.text)
