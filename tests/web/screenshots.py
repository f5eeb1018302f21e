"""Pictures of every state of the page, to look at: `python -m tests.web.screenshots FOLDER`.

The answers are prepared ones: what is shown is the page, not what a model can do.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from playwright.sync_api import sync_playwright

from tests.serve.live_server import serving
from tests.web.scripted_backend import ScriptedBackend
from tests.web.talk import add, ask, choose, send, wait_until
from vl2.checkpoint import locate_checkpoint
from vl2.errors import UserError
from vl2.process.processor import Processor
from vl2.serve.settings import ServerSettings

ANSWER = (
    "On the table there are three things:\n\n"
    "1. a <|ref|>red mug<|/ref|><|det|>[[105, 425, 365, 742]]<|/det|> with its handle to the right,\n"
    "2. a <|ref|>white plate<|/ref|><|det|>[[434, 592, 675, 741]]<|/det|>, and\n"
    "3. a <|ref|>blue book<|/ref|><|det|>[[749, 283, 923, 716]]<|/det|> that stands upright."
)
ANSWER_ZH = (
    "桌上有一个<|ref|>红色的杯子<|/ref|><|det|>[[105, 425, 365, 742]]<|/det|>和一本"
    "<|ref|>蓝色的书<|/ref|><|det|>[[749, 283, 923, 716]]<|/det|>。"
)
PHONE = {"viewport": {"width": 390, "height": 760}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
NOT_THERE = "<|ref|>the green vase<|/ref|><|det|>[[434, 592, 675, 741]]<|/det|>"
MARKDOWN = """## What the table shows

Item | Price
--- | ---:
Tea | 2.40
Bun | 1.80

1. First **add** the prices,
2. then
   - check them, and
   - *write* the sum down:

```python
total = 2.40 + 1.80
```

> It was 4.20 last week, too.
"""
Opener = Callable[..., Any]


def draw_desk(path: Path) -> Path:
    """Draw a mug, a plate and a book on a table, four times as large and then made smaller, for smooth edges."""
    image = Image.new("RGB", (2560, 1680), "#f4ecdf")
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 1160, 2560, 1680), fill="#b98a5a")
    pen.arc((680, 820, 930, 1100), 270, 90, fill="#d93636", width=60)
    pen.rounded_rectangle((280, 720, 760, 1240), 56, fill="#d93636")
    pen.ellipse((1120, 1000, 1720, 1240), fill="#e8e8ef", outline="#9a9ab0", width=16)
    pen.rectangle((1920, 480, 2360, 1200), fill="#2f6fd6")
    pen.rectangle((1968, 540, 2312, 640), fill="white")
    image.resize((640, 420), Image.Resampling.LANCZOS).save(path)
    return path


def take(folder: Path, backend: ScriptedBackend, open_page: Opener) -> None:
    desk = draw_desk(folder / "desk.png")

    def shot(page: Any, name: str) -> None:
        page.wait_for_timeout(350)
        page.screenshot(path=folder / f"{name}.png")

    def answered(text: str = ANSWER, **options: Any) -> Any:
        backend.reset()
        backend.text = text
        page = open_page(**options)
        add(page, desk)
        choose(page, "describe")
        ask(page)
        return page

    for scheme in ("light", "dark"):
        shot(open_page(color_scheme=scheme), f"empty-{scheme}")
        page = answered(color_scheme=scheme, viewport={"width": 1280, "height": 1000})
        page.hover(".mention >> nth=0")
        shot(page, f"boxes-{scheme}")
    shot(open_page(**PHONE), "empty-phone")
    page = answered(**PHONE)
    shot(page, "boxes-phone")
    page.tap("#open-settings")
    shot(page, "settings-phone")
    shot(answered(ANSWER_ZH, locale="zh-CN"), "boxes-chinese")
    shot(answered(ANSWER_ZH, locale="zh-CN", color_scheme="dark", **PHONE), "boxes-chinese-phone")

    page = open_page()
    add(page, desk)
    shot(page, "before-sending")
    page.click(".attachment-open")
    for corner, value in enumerate((68, 178, 234, 312)):
        page.fill(f"[data-corner='{corner}']", str(value))
    shot(page, "tiles")

    for name, options in (("desk", {}), ("phone", PHONE)):
        backend.reset()
        backend.text, backend.later = NOT_THERE, "No."
        page = open_page(**options)
        add(page, desk)
        choose(page, "locate")
        ask(page, "the green vase")
        shot(page, f"not-there-{name}")
        backend.reset()
        backend.text = MARKDOWN
        page = open_page(**options)
        ask(page, "word after word " * 150)
        shot(page, f"markdown-{name}")

    backend.reset()
    backend.text, backend.pause_after = ANSWER, 60
    page = open_page()
    add(page, desk)
    send(page, "What is on the table?")
    wait_until(page, "() => document.querySelector('.box')")
    shot(page, "streaming")
    page.click("#stop")
    shot(page, "stopped")

    backend.reset()
    backend.error = UserError(
        "the prompt has 9000 tokens (8700 visual), the context is 4096: use fewer images or turns"
    )
    page = open_page()
    ask(page, "What is on the table?")
    send(page)
    shot(page, "error")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    backend = ScriptedBackend(Processor.from_folder(locate_checkpoint("nano")))
    path = os.environ.get("VL2_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
    with serving(backend, ServerSettings(name="example")) as server, sync_playwright() as driver:
        args = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=path, args=args)

        def open_page(**options: Any) -> Any:
            made = {"viewport": {"width": 1280, "height": 860}, "locale": "en-GB", "color_scheme": "light", **options}
            page = browser.new_context(**made).new_page()
            page.goto(server.url)
            wait_until(page, "() => document.getElementById('model-name').textContent !== ''")
            return page

        take(folder, backend, open_page)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
