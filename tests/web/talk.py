"""What a person does on the page, in words."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

DONE = ".answer[aria-busy=false]"
PATIENCE_S = 20.0


def wait_until(page: Any, condition: str, arg: object = None) -> None:
    """Wait for a true value of a function. The driver's own waiting would need eval, which the page forbids."""
    deadline = time.monotonic() + PATIENCE_S
    while not page.evaluate(condition, arg):
        assert time.monotonic() < deadline, f"this did not come about: {condition}"
        page.wait_for_timeout(20)


def add(page: Any, *pictures: Path) -> None:
    """Choose files, and wait until the page knows what they cost."""
    before = page.locator(".attachment").count()
    page.set_input_files("#file", [str(path) for path in pictures])
    wait_until(
        page,
        "n => { const costs = [...document.querySelectorAll('[data-cost]')];"
        " return costs.length === n && costs.every(e => e.textContent) }",
        before + len(pictures),
    )


def open_chats(page: Any) -> None:
    if not page.locator("#chats").is_visible():
        page.click("#toggle-chats")


def fill_fields(page: Any, *fields: tuple[str, str]) -> None:
    """Type the names and choose the types of the fields to extract."""
    for index, (name, kind) in enumerate(fields):
        if page.locator(".field").count() == index:
            page.click("#add-field")
        page.locator(".field input").nth(index).fill(name)
        page.locator(".field select").nth(index).select_option(kind)


def choose(page: Any, task: str) -> None:
    page.locator(f"#tasks input[value={task}]").check(force=True)


def ask(page: Any, question: str = "") -> None:
    """Type a question, if any, send it with Enter, and wait for the whole answer."""
    answers = page.locator(DONE).count()
    send(page, question)
    wait_until(page, "n => document.querySelectorAll('.answer[aria-busy=false]').length > n", answers)


def send(page: Any, question: str = "") -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")


def answer_text(page: Any) -> str:
    text: str = page.locator(".answer-text").last.inner_text()
    return text.strip()


def rect(locator: Any) -> tuple[float, float, float, float]:
    """Return the edges of an element in the window: left, top, right, bottom."""
    place = locator.bounding_box()
    return place["x"], place["y"], place["x"] + place["width"], place["y"] + place["height"]
