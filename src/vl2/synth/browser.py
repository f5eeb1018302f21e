"""Render HTML pages with a headless Chromium, and return the boxes of their links, buttons and fields.

Chromium runs twice: the first run lays out the page and measures its elements and height, and the second takes a
screenshot at that height.
"""

from __future__ import annotations

import contextlib
import html
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vl2.data.record import BoxPx
from vl2.errors import UserError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TIMEOUT_S = 60
FONTS_CONF = "fonts.conf"
MAX_HEIGHT_PX = 2000
MIN_WINDOW = (500, 400)  # px; Chromium renders smaller windows larger than requested, or not at all
# This script is added to a copy of the page. It measures the elements and the height of the page.
_MEASURE = """<script>
const found = [];
for (const e of document.querySelectorAll("a, button, input, select, textarea, h1, h2")) {
  const b = e.getBoundingClientRect();
  found.push({tag: e.tagName.toLowerCase(), label: e.placeholder || e.innerText || e.name || "",
              box: [b.left, b.top, b.right, b.bottom]});
}
const height = document.documentElement.getBoundingClientRect().height;
document.documentElement.setAttribute("data-measured", JSON.stringify({height, found}));
</script>"""


@dataclass(frozen=True, kw_only=True)
class Element:
    """A link, button, field or heading of a page, with its box in pixels."""

    tag: str
    label: str
    box: BoxPx


@dataclass(frozen=True, kw_only=True)
class Rendered:
    image: Image.Image
    elements: tuple[Element, ...]


def find_browser() -> str | None:
    """Return the path of a Chromium or Chrome on this machine, or None."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def render(
    page: str, width: int, font_folders: Sequence[str] = (), *, files: Mapping[str, bytes] | None = None
) -> Rendered:
    """Render an HTML page at a width in pixels, without network access. The height is cut at MAX_HEIGHT_PX.

    Fonts in `font_folders` are available in addition to those of the system. `files` are the style sheets and images
    that the page names; a name is a plain file name. Raise UserError if no browser is
    installed, or if it fails.
    """
    if width < MIN_WINDOW[0]:
        raise UserError(f"the width of a page must be at least {MIN_WINDOW[0]} px, got {width}")
    browser = find_browser()
    if browser is None:
        raise UserError("drawing web pages needs Chromium: install chromium")
    with tempfile.TemporaryDirectory(prefix="vl2-browser-") as folder:
        home = Path(folder)
        if font_folders:
            (home / FONTS_CONF).write_text(fonts_conf(font_folders), encoding="utf-8")
        for name, content in (files or {}).items():
            assert Path(name).name == name, f"{name} is not a plain file name"
            (home / name).write_bytes(content)
        measured = home / "measured.html"
        measured.write_text(page.replace("</body>", f"{_MEASURE}</body>"), encoding="utf-8")
        dom = _run(browser, home, measured, (width, 600), "--dump-dom")
        height, elements = _read_measures(dom.decode(errors="replace"))
        plain = home / "page.html"
        plain.write_text(page, encoding="utf-8")
        height = min(MAX_HEIGHT_PX, max(1, height))
        window = (width, max(height, MIN_WINDOW[1]))
        _run(browser, home, plain, window, f"--screenshot={home / 'page.png'}")
        if not (home / "page.png").is_file():
            raise UserError(f"{browser} made no picture of the page")
        image = Image.open(io.BytesIO((home / "page.png").read_bytes())).convert("RGB").crop((0, 0, width, height))
    inside = [
        e for e in elements if 0 <= e.box[0] < e.box[2] <= image.width and 0 <= e.box[1] < e.box[3] <= image.height
    ]
    return Rendered(image=image, elements=tuple(inside))


def fonts_conf(folders: Sequence[str]) -> str:
    """Return a fontconfig file: the system's configuration with additional folders. Only Linux uses it."""
    dirs = "".join(f"<dir>{html.escape(str(Path(folder).resolve()))}</dir>" for folder in folders)
    return (
        '<?xml version="1.0"?>\n<!DOCTYPE fontconfig SYSTEM "fonts.dtd">\n<fontconfig>'
        f'<include ignore_missing="yes">/etc/fonts/fonts.conf</include>{dirs}</fontconfig>\n'
    )


def _read_measures(dom: str) -> tuple[int, list[Element]]:
    match = re.search(r'data-measured="([^"]*)"', dom)
    if match is None:
        raise UserError("the browser did not lay out the page")
    measures = json.loads(html.unescape(match[1]))
    elements = [
        Element(
            tag=e["tag"],
            label=" ".join(str(e["label"]).split()),
            box=(e["box"][0], e["box"][1], e["box"][2], e["box"][3]),
        )
        for e in measures["found"]
    ]
    return int(measures["height"] + 0.999), elements


def _run(browser: str, home: Path, page: Path, size: tuple[int, int], action: str) -> bytes:
    command = [
        browser, "--headless", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1", "--mute-audio",
        "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND", "--no-first-run",
        f"--user-data-dir={home / 'profile'}", f"--window-size={size[0]},{size[1]}", action, page.as_uri(),
    ]  # fmt: skip
    if os.name == "posix" and os.geteuid() == 0:
        command.insert(1, "--no-sandbox")  # Chromium cannot use its sandbox as root; the pages are our own
    own_fonts = {"FONTCONFIG_FILE": str(home / FONTS_CONF)} if (home / FONTS_CONF).is_file() else {}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **own_fonts},
    )
    try:
        return process.communicate(timeout=TIMEOUT_S)[0]
    except subprocess.TimeoutExpired:
        raise UserError(f"{browser} took more than {TIMEOUT_S} s for a page") from None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.name == "nt":
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
