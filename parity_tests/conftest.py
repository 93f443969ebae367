"""What tests of several folders need."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoint folders of tiny pipelines by name, each built once."""
    from porter.parity import checkpoint

    root, built = tmp_path_factory.mktemp("checkpoints"), {}

    def build(name: str) -> Path:
        if name not in built:
            built[name] = checkpoint.build(name, root / name)
        return built[name]

    return build


@pytest.fixture(scope="module")
def browser():
    """A Chromium without a window: what ``make browser`` installs, or ``PORTER_CHROMIUM`` names."""
    from playwright.sync_api import sync_playwright

    from tools.browser import find_chromium

    found = find_chromium()
    assert found, "there is no Chromium to try pages in: `make browser` installs one, PORTER_CHROMIUM names another"
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        started = playwright.chromium.launch(executable_path=found, headless=True, args=flags)
        yield started
        started.close()


@pytest.fixture
def visitor(browser):
    """Somebody with an empty profile who opens pages."""
    from parity_tests.browser import Visitor

    with browser.new_context() as context:
        yield Visitor(context)


@pytest.fixture(autouse=True)
def own_log_level() -> Iterator[None]:
    """A command that was run in this process, and asked for less to be said, leaves no test deaf."""
    logger = logging.getLogger("porter")
    level = logger.level
    yield
    logger.setLevel(level)
