"""A real browser before a real server. Without a browser or the `browser` extra these tests are skipped.

The browser is what VL2_BROWSER names, or the Chromium or Chrome that is found; Chromium's headless shell is fastest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

pytest.importorskip("fastapi", reason="the `serve` extra is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="the `browser` extra is not installed")

from tests.serve.live_server import LiveServer, serving  # noqa: E402
from tests.web.scripted_backend import ScriptedBackend  # noqa: E402
from tests.web.talk import wait_until  # noqa: E402
from vl2.checkpoint import locate_checkpoint  # noqa: E402
from vl2.process.processor import Processor  # noqa: E402
from vl2.serve.settings import ServerSettings  # noqa: E402

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(driver: Any) -> Iterator[Any]:
    path = os.environ.get("VL2_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no chromium or Chrome found; VL2_BROWSER can name one")
    # A superuser, as in a container, has no sandbox.
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    found = driver.chromium.launch(executable_path=path, args=["--no-sandbox"] if is_root else [])
    yield found
    found.close()


@pytest.fixture(scope="session")
def nano_processor() -> Processor:
    return Processor.from_folder(locate_checkpoint("nano"))


@pytest.fixture(scope="session")
def scripted_server(nano_processor: Processor) -> Iterator[tuple[ScriptedBackend, LiveServer]]:
    backend = ScriptedBackend(nano_processor)
    with serving(backend, ServerSettings(name="nano")) as server:
        yield backend, server


@pytest.fixture
def backend(scripted_server: tuple[ScriptedBackend, LiveServer]) -> ScriptedBackend:
    scripted_server[0].reset()
    return scripted_server[0]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open an address in a fresh window; afterwards nothing may have gone wrong in it that was not expected."""
    contexts = []
    troubles: list[str] = []

    def open_at(
        url: str, *, expects_errors: bool = False, waits: bool = True, script: str | None = None, **options: Any
    ) -> Any:
        made = {"viewport": {"width": 1280, "height": 860}, "locale": "en-GB", "color_scheme": "light", **options}
        context = browser.new_context(**made)
        contexts.append(context)
        if script is not None:
            context.add_init_script(script)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        if not expects_errors:
            page.on("console", lambda said: troubles.append(said.text) if said.type == "error" else None)
        page.goto(url)
        if waits:
            wait_until(page, "() => document.getElementById('model-name').textContent !== ''")
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture
def page(open_page: Callable[..., Any], scripted_server: tuple[Any, LiveServer], backend: ScriptedBackend) -> Any:
    """The page of a server that says what `backend` is told."""
    return open_page(scripted_server[1].url)


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 400 x 300 px: blue above, green below."""
    image = Image.new("RGB", (400, 300), (40, 80, 220))
    ImageDraw.Draw(image).rectangle((0, 150, 399, 299), fill=(40, 160, 80))
    path = tmp_path_factory.mktemp("pictures") / "halves.png"
    image.save(path)
    return path


@pytest.fixture(scope="session")
def second_picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "tall.png"
    Image.new("RGB", (120, 480), (200, 200, 60)).save(path)
    return path
