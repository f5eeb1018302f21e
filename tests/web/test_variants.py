"""A question is edited or asked again: the answers are variants, and each keeps what followed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.web.scripted_backend import ScriptedBackend
from tests.web.talk import add, answer_text, ask, choose, wait_until
from vl2.infer.prompts import locate_prompt
from vl2.process.conversation import Turn, user_turn


def shown(page: Any) -> tuple[list[str], list[str]]:
    questions = page.locator(".question-text").all_inner_texts()
    return questions, [text.strip() for text in page.locator(".answer-text").all_inner_texts()]


def wait_for_variant(page: Any, label: str) -> None:
    find = """label => [...document.querySelectorAll(".answer[aria-busy=false] .variants")]
      .some((element) => element.innerText.includes(label))"""
    wait_until(page, find, label)


def edit(page: Any, index: int, words: str) -> None:
    page.locator(".question").nth(index).get_by_role("button", name="Edit").click()
    page.fill(".question-edit textarea", words)
    page.keyboard.press("Enter")


def test_another_try_is_a_variant_and_both_are_kept(page: Any, backend: ScriptedBackend):
    backend.text = "First."
    ask(page, "What?")
    backend.text = "Follow-up."
    ask(page, "More?")
    backend.text = "Second."
    page.locator(".answer").first.get_by_role("button", name="Try again").click()
    wait_for_variant(page, "2/2")
    assert shown(page) == (["What?"], ["Second."])
    page.get_by_role("button", name="Previous variant").click()
    assert shown(page) == (["What?", "More?"], ["First.", "Follow-up."])
    assert page.evaluate("document.activeElement.textContent") == "›"  # there is none before it
    page.keyboard.press("Enter")
    assert shown(page) == (["What?"], ["Second."])
    page.reload()
    wait_for_variant(page, "2/2")
    page.get_by_role("button", name="Previous variant").click()
    assert shown(page) == (["What?", "More?"], ["First.", "Follow-up."])


def test_an_edited_question_is_asked_without_what_followed(page: Any, backend: ScriptedBackend, picture: Path):
    backend.text = "A."
    add(page, picture)
    ask(page, "One?")
    backend.text = "B."
    ask(page, "Two?")
    backend.text = "C."
    edit(page, 1, "Three?")
    wait_for_variant(page, "2/2")
    assert shown(page) == (["One?", "Three?"], ["A.", "C."])
    expected = backend.processor.encode(
        [user_turn("One?", [str(picture)]), Turn(role="assistant", pieces=("A.",)), user_turn("Three?")]
    )
    assert backend.requests[-1].sample.input_ids.tolist() == expected.input_ids.tolist()
    edit(page, 0, "Zero?")
    wait_until(page, "() => document.querySelectorAll('.turn').length === 2")
    wait_for_variant(page, "2/2")
    assert backend.requests[-1].images[0].size == (400, 300)  # the picture stays


def test_editing_keeps_the_task_and_escape_changes_nothing(page: Any, backend: ScriptedBackend, picture: Path):
    add(page, picture)
    choose(page, "locate")
    ask(page, "the sky")
    page.get_by_role("button", name="Edit").click()
    assert page.input_value(".question-edit textarea") == "the sky"
    page.keyboard.type("nothing")
    page.keyboard.press("Escape")
    assert page.locator(".question-text").inner_text() == "Locate: the sky"
    assert page.evaluate("document.activeElement.textContent") == "Edit"
    edit(page, 0, "the grass")
    wait_for_variant(page, "2/2")
    assert page.locator(".question-text").inner_text() == "Locate: the grass"
    told = backend.processor.tokenizer.decode(backend.requests[-1].sample.input_ids.tolist(), skip_special=False)
    assert locate_prompt("the grass") in told


def test_a_question_is_copied_as_it_was_typed(page: Any, backend: ScriptedBackend):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "one\n  two")
    page.locator(".question").get_by_role("button", name="Copy").click()
    wait_until(page, "async () => await navigator.clipboard.readText() === 'one\\n  two'")
    assert answer_text(page) == backend.text
