"""Pictures of every state of the page, to look at: `python -m tests.web.screenshots FOLDER [STATE ...]`.

Each state is taken in a window and on a phone, light and dark.

The answers are prepared ones: what is shown is the page, not what a model can do.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import sync_playwright

from tests.ocr.golden import toy_folder
from tests.pdf_files import color_pdf
from tests.serve.live_server import serving
from tests.web.scripted_backend import ScriptedBackend
from tests.web.talk import add, ask, choose, fill_fields, open_chats, send, wait_until
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

The mean \\(\\bar{x}\\) of \\(n\\) prices and its error:

\\[
\\bar{x} = \\frac{1}{n} \\sum_{i=1}^{n} x_i, \\qquad s = \\sqrt{\\frac{1}{n-1} \\sum_{i=1}^{n} (x_i - \\bar{x})^2}
\\]
"""
PAGE = (
    "<|ref|>title<|/ref|><|det|>[[95, 50, 500, 100]]<|/det|>\n# Invoice 2026-117\n\n"
    "<|ref|>text<|/ref|><|det|>[[95, 140, 560, 245]]<|/det|>\nGoods as ordered, delivered in May. The sum is "
    "\\(2.40 + 1.80\\)."
    "\n\n<|ref|>table<|/ref|><|det|>[[95, 285, 905, 490]]<|/det|>\n<table><tr><td>Item</td><td>Price</td></tr>"
    "<tr><td>Tea</td><td>2.40</td></tr><tr><td>Bun</td><td>1.80</td></tr><tr><td>Total</td><td>4.20</td></tr></table>"
    "\n\n<|ref|>image<|/ref|><|det|>[[255, 585, 745, 930]]<|/det|>\n"
)
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


def draw_invoice(path: Path) -> Path:
    """Draw a page with a title, a paragraph, a table and a figure, whose places PAGE names."""
    image = Image.new("RGB", (840, 1188), "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default
    pen.text((84, 70), "Invoice 2026-117", fill="black", font=font(40))
    for line in range(4):
        pen.text((84, 170 + 30 * line), "Goods as ordered, delivered in May.", fill="#333333", font=font(22))
    for row, (item, price) in enumerate((("Item", "Price"), ("Tea", "2.40"), ("Bun", "1.80"), ("Total", "4.20"))):
        pen.rectangle((84, 340 + 60 * row, 756, 400 + 60 * row), outline="#888888", width=2)
        pen.text((104, 355 + 60 * row), item, fill="black", font=font(26))
        pen.text((620, 355 + 60 * row), price, fill="black", font=font(26))
    pen.ellipse((220, 700, 620, 1100), fill="#2f6fd6")
    image.save(path)
    return path


class Shots:
    """Takes one picture of each state, in one size and one color scheme."""

    def __init__(self, folder: Path, backend: ScriptedBackend, open_page: Opener, name: str) -> None:
        self.folder, self.backend, self.open_page, self.name = folder, backend, open_page, name
        self.desk, self.invoice = draw_desk(folder / "desk.png"), draw_invoice(folder / "invoice.png")
        self.report = folder / "report.pdf"
        self.report.write_bytes(color_pdf(["#e8e8ef", "#d93636", "#2f6fd6", "#b98a5a"] * 6))
        self.is_phone = "phone" in name

    def shot(self, page: Any, state: str) -> None:
        page.wait_for_timeout(350)
        page.screenshot(path=self.folder / f"{state}-{self.name}.png")

    def page(self, text: str = ANSWER, **script: Any) -> Any:
        self.backend.reset()
        self.backend.text = text
        for name, value in script.items():
            setattr(self.backend, name, value)
        return self.open_page()

    def welcome(self) -> None:
        page = self.page()
        self.shot(page, "empty")
        send(page)
        self.shot(page, "nothing-asked")
        page.click("#open-settings")
        self.shot(page, "settings")

    def boxes(self) -> None:
        page = self.page()
        add(page, self.desk)
        self.shot(page, "before-sending")
        page.click(".attachment-open")
        for corner, value in enumerate((68, 178, 234, 312)):
            page.fill(f"[data-corner='{corner}']", str(value))
        self.shot(page, "tiles")
        page.keyboard.press("Escape")
        choose(page, "describe")
        ask(page)
        page.hover(".mention >> nth=0")
        self.shot(page, "boxes")
        page.click(".enlarge")
        page.keyboard.press("+")
        page.keyboard.press("+")
        self.shot(page, "zoom")

    def chats(self) -> None:
        page = self.page("It is a red mug.")
        for question in ("What stands on the table?", "Which colors are there in this picture?", "桌上有什么？"):
            page.click("#new-chat")
            ask(page, question)
        open_chats(page)
        page.click(".chat-more >> nth=1")
        self.shot(page, "chats")
        page.locator(".chat-actions .danger").click()
        page.set_input_files("#chat-file", str(self.desk))
        page.wait_for_selector("#chats-warning")
        self.shot(page, "chats-delete")

    def pdf(self) -> None:
        page = self.page()
        page.set_input_files("#file", str(self.report))
        page.wait_for_selector("#pages[open]")
        for number in (0, 2):
            page.locator(".page").nth(number).click()
        wait_until(page, "() => document.querySelectorAll('.page img').length >= 24")
        self.shot(page, "pages")

    def markdown(self) -> None:
        page = self.page(MARKDOWN)
        ask(page, "word after word " * 150)
        wait_until(page, "() => document.querySelectorAll('.katex').length > 2")
        page.wait_for_timeout(500)
        self.shot(page, "markdown")
        page.locator("#main").evaluate("main => { main.scrollTop = 0 }")
        page.hover(".question")
        self.shot(page, "long-question")

    def variants(self) -> None:
        page = self.page("A mug.")
        ask(page, "What is on the table?")
        self.backend.text = "A red mug, a white plate and a blue book."
        page.click(".again")
        wait_until(page, "() => document.querySelector('.variants')?.innerText.includes('2/2')")
        self.shot(page, "variants")
        page.hover(".question")
        page.get_by_role("button", name="Edit").click()
        self.shot(page, "edit")

    def locate(self) -> None:
        page = self.page(NOT_THERE, later="No.")
        add(page, self.desk)
        choose(page, "locate")
        ask(page, "the green vase")
        self.shot(page, "not-there")

    def streaming(self) -> None:
        page = self.page(pause_after=60)
        add(page, self.desk)
        send(page, "What is on the table?")
        wait_until(page, "() => document.querySelector('.box')")
        self.shot(page, "streaming")
        page.click("#stop")
        self.shot(page, "stopped")

    def error(self) -> None:
        told = "the prompt has 9000 tokens (8700 visual), the context is 4096: use fewer images or turns"
        page = self.page(error=UserError(told))
        ask(page, "What is on the table?")
        self.shot(page, "error")

    def extract(self) -> None:
        page = self.page('{"number": "2026-117", "total": 4.2, "paid": null, "items": ["Tea", "Bun"]}')
        self.backend.later = "<|ref|>it<|/ref|><|det|>[[720, 440, 820, 485]]<|/det|>"
        add(page, self.invoice)
        choose(page, "extract")
        fill_fields(page, ("number", "text"), ("total", "number"), ("paid", "flag"), ("items", "list"))
        self.shot(page, "extract-form")
        page.click("#toggle-schema")
        self.shot(page, "extract-schema")
        page.click("#send")
        wait_until(page, "() => document.querySelector('.answer[aria-busy=false]')")
        page.hover(".values tbody tr >> nth=1")
        self.shot(page, "extracted")

    def document(self) -> None:
        page = self.page(PAGE)
        add(page, self.invoice)
        ask(page)
        self.shot(page, "read")
        page.get_by_role("button", name="Page and text").click()
        page.hover(".block >> nth=2")
        self.shot(page, "document")

    def chinese(self) -> None:
        page = self.page(ANSWER_ZH)
        page.click("#language")
        add(page, self.desk)
        choose(page, "describe")
        ask(page)
        open_chats(page)
        page.click(".chat-more")
        self.shot(page, "chinese")


STATES = (
    "welcome",
    "boxes",
    "chats",
    "pdf",
    "markdown",
    "variants",
    "locate",
    "streaming",
    "error",
    "extract",
    "chinese",
)
WINDOWS = {
    "desktop-light": {"color_scheme": "light"},
    "desktop-dark": {"color_scheme": "dark"},
    "phone-light": {"color_scheme": "light", **PHONE},
    "phone-dark": {"color_scheme": "dark", **PHONE},
}


def take(browser: Any, folder: Path, url: str, backend: ScriptedBackend, states: Sequence[str]) -> None:
    for name, options in WINDOWS.items():
        made = {"viewport": {"width": 1280, "height": 860}, "locale": "en-GB", **options}

        def open_page(made: dict[str, Any] = made) -> Any:
            page = browser.new_context(**made).new_page()
            page.set_default_timeout(120_000)  # a busy machine takes its time
            page.goto(url)
            wait_until(page, "() => document.getElementById('model-name').textContent !== ''")
            return page

        shots = Shots(folder, backend, open_page, name)
        for state in states:
            getattr(shots, state)()


def main(folder: Path, states: Sequence[str]) -> None:
    """Take pictures of these states, or of all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = os.environ.get("VL2_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
    args = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=args)
        models = {"nano": locate_checkpoint("nano"), "deepseek-ocr": toy_folder("deepseek-ocr")}
        for name, checkpoint in models.items():
            backend = ScriptedBackend(Processor.from_folder(checkpoint))
            own = STATES if name == "nano" else ("document",)
            with serving(backend, ServerSettings(name=name)) as server:
                take(browser, folder, server.url, backend, [state for state in own if not states or state in states])
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
