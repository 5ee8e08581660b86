"""A headless Chromium for the session, and pages opened in it as a reader opens them: from a file, watched."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bnbench.report.html import render
from tests.report import answers

REQUIRED = "BNBENCH_REQUIRE_BROWSER"  # in CI: no browser is a failure there
INSTALL = str(Path(__file__).with_name("install"))
SECONDS = 300  # to install
DRAWN = 120_000  # milliseconds until all charts are, on a busy machine


@dataclass
class Chromium:
    browser: Any  # playwright's
    axe: str  # the script


@dataclass
class Opened:
    """A page, and what it said and asked for from its first moment on."""

    page: Any  # playwright's
    file: Path
    said: list[str] = field(default_factory=list)  # errors and warnings of the console, exceptions, dialogs
    asked: list[str] = field(default_factory=list)  # addresses


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    done = subprocess.run([INSTALL], capture_output=True, text=True, timeout=SECONDS)
    if done.returncode and os.environ.get(REQUIRED):
        pytest.fail(f"no browser, and {REQUIRED} is set: {done.stderr}")
    if done.returncode:
        pytest.skip(f"no browser here: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    program, axe = done.stdout.split("\n")[:2]
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        # Root, as in a container, has no sandbox.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield Chromium(browser, Path(axe).read_text(encoding="utf-8"))
        browser.close()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name, made in answers.MADE.items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(render(*made()), encoding="utf-8")
    return found


@pytest.fixture
def opened(chromium: Chromium, files: dict[str, Path]) -> Iterator[Callable[..., Opened]]:
    """Opens the page of a made-up answer: `opened("whole", width=390, theme="dark")`."""
    contexts = []

    def open_page(name: str, *, width: int = 1280, theme: str = "light", scripts: bool = True) -> Opened:
        phone = width < 600
        context = chromium.browser.new_context(
            viewport={"width": width, "height": 844 if phone else 800},
            color_scheme=theme,
            has_touch=phone,
            java_script_enabled=scripts,
        )
        contexts.append(context)
        found = Opened(context.new_page(), files[name])
        found.page.on("console", lambda message: found.said.append(f"{message.type}: {message.text}"))
        found.page.on("pageerror", lambda error: found.said.append(f"exception: {error}"))
        found.page.on(
            "dialog", lambda dialog: (found.said.append(f"dialog: {dialog.message}"), dialog.dismiss())
        )
        context.on("request", lambda request: found.asked.append(request.url))
        found.page.goto(found.file.as_uri())
        if scripts:
            found.page.wait_for_selector("html[data-drawn]", state="attached", timeout=DRAWN)
        return found

    yield open_page
    for context in contexts:
        context.close()
