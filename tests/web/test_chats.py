"""Chats are kept in the browser: listed, searched, renamed, deleted, continued, exported and imported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.web.scripted_backend import ScriptedBackend
from tests.web.talk import add, answer_text, ask, open_chats, send, wait_until
from vl2.process.conversation import Turn, user_turn

PHONE = {"viewport": {"width": 390, "height": 760}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
DENIED = "indexedDB.open = () => { throw new DOMException('no', 'InvalidStateError'); }"
NO_STORAGE = (
    "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } });"
)
FULL = "IDBObjectStore.prototype.put = () => { throw new DOMException('full', 'QuotaExceededError'); }"


def titles(page: Any) -> list[str]:
    found: list[str] = page.locator(".chat-title").all_inner_texts()
    return found


def wait_for_titles(page: Any, *expected: str) -> None:
    shown = "wanted => JSON.stringify([...document.querySelectorAll('.chat-title')].map(e => e.textContent)) === wanted"
    wait_until(page, shown, json.dumps(list(expected), ensure_ascii=False, separators=(",", ":")))


def act(page: Any, title: str, action: str) -> None:
    """Press one of the actions of a chat in the list."""
    row = page.locator(".chat", has_text=title)
    if row.locator(".chat-actions").count() == 0:
        row.locator(".chat-more").click()
    page.locator(".chat", has_text=title).get_by_role("button", name=action, exact=True).click()


def test_a_chat_survives_a_reload_and_is_continued(page: Any, backend: ScriptedBackend, picture: Path):
    backend.text = "A <|ref|>field<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|>."
    add(page, picture)
    ask(page, "What is it?")
    wait_for_titles(page, "What is it?")
    page.reload()
    wait_until(page, "() => document.querySelector('.answer-text')?.innerText.trim() === 'A field.'")
    assert page.locator(".question-text").inner_text() == "What is it?"
    assert page.locator(".thumb img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 400
    assert page.locator(".box").count() == 1
    backend.text = "Green."
    ask(page, "Its color?")
    expected = backend.processor.encode(
        [
            user_turn("What is it?", [str(picture)]),
            Turn(role="assistant", pieces=("A <|ref|>field<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|>.",)),
            user_turn("Its color?"),
        ]
    )
    assert backend.requests[-1].sample.input_ids.tolist() == expected.input_ids.tolist()
    assert titles(page) == ["What is it?"]


def test_a_new_tab_begins_empty_and_opens_any_chat(page: Any, backend: ScriptedBackend):
    for question in ("First?", "Second?"):
        backend.text = f"Answer to {question}"
        page.click("#new-chat")
        ask(page, question)
    wait_for_titles(page, "Second?", "First?")
    other = page.context.new_page()
    other.goto(page.url)
    wait_for_titles(other, "Second?", "First?")
    assert other.locator(".turn").count() == 0
    other.click(".chat-open >> text=First?")
    wait_until(other, "() => document.querySelector('.answer-text')?.innerText.includes('First?')")
    assert other.locator(".chat.is-current").inner_text().startswith("First?")
    assert other.locator(".turn").count() == 2


def test_chats_are_searched_by_all_that_was_said(page: Any, backend: ScriptedBackend):
    for question, answer in (("Fruit?", "An apple lies there."), ("Animal?", "A heron stands there.")):
        backend.text = answer
        page.click("#new-chat")
        ask(page, question)
    wait_for_titles(page, "Animal?", "Fruit?")
    page.fill("#chat-search", "HERON")
    wait_for_titles(page, "Animal?")
    assert "heron" in page.locator(".chat-date").inner_text()
    page.fill("#chat-search", "fruit")
    wait_for_titles(page, "Fruit?")
    page.fill("#chat-search", "nowhere")
    wait_for_titles(page)
    assert page.locator("#chats-empty").inner_text() == "No chat has these words."


def test_a_chat_is_renamed_and_deleted(page: Any, backend: ScriptedBackend):
    ask(page, "What?")
    wait_for_titles(page, "What?")
    act(page, "What?", "Rename")
    page.keyboard.type("My <b>field</b>")
    page.keyboard.press("Enter")
    wait_for_titles(page, "My <b>field</b>")
    ask(page, "More?")
    page.reload()
    wait_for_titles(page, "My <b>field</b>")
    act(page, "My", "Delete")
    page.get_by_role("button", name="Cancel", exact=True).click()
    assert titles(page) == ["My <b>field</b>"]
    act(page, "My", "Delete")
    act(page, "My", "Delete")
    wait_for_titles(page)
    assert page.locator(".turn").count() == 0
    page.reload()
    wait_until(page, "() => !document.getElementById('chats-empty').hidden")
    assert titles(page) == []
    left = """() => new Promise((resolve) => { const opened = indexedDB.open("vl2"); opened.onsuccess = () => {
      const count = opened.result.transaction("pictures").objectStore("pictures").count();
      count.onsuccess = () => resolve(count.result); } })"""
    assert page.evaluate(left) == 0


def test_deleting_a_chat_whose_answer_is_coming_does_not_bring_it_back(page: Any, backend: ScriptedBackend):
    backend.pause_after = 1
    send(page, "What?")
    wait_for_titles(page, "What?")
    act(page, "What?", "Delete")
    act(page, "What?", "Delete")
    wait_for_titles(page)
    backend.go_on()
    page.wait_for_timeout(200)
    page.reload()
    wait_until(page, "() => !document.getElementById('chats-empty').hidden")


def test_an_answer_that_a_reload_cut_off_is_told(page: Any, backend: ScriptedBackend):
    backend.text = "One two three four five six."
    backend.pause_after = 3
    send(page, "Count.")
    wait_for_titles(page, "Count.")
    page.reload()
    page.wait_for_selector(".note >> text=Stopped.")
    backend.reset()
    backend.text = "Whole."
    page.click("text=Try again")
    wait_until(page, "() => document.querySelector('.answer-text')?.innerText.includes('Whole.')")
    assert page.locator(".turn").count() == 2


def test_exported_chats_are_imported_in_another_browser(
    open_page: Callable[..., Any], page: Any, backend: ScriptedBackend, picture: Path, tmp_path: Path
):
    backend.text = "A <|ref|>field<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|>."
    add(page, picture)
    ask(page, "What is it?")
    wait_for_titles(page, "What is it?")
    with page.expect_download() as download:
        page.click("#export-chats")
    download.value.save_as(tmp_path / "chats.json")
    with page.expect_download() as download:
        act(page, "What is it?", "Markdown")
    download.value.save_as(tmp_path / "chat.md")
    assert download.value.suggested_filename == "What is it.md"
    assert (tmp_path / "chat.md").read_text(encoding="utf-8") == (
        "# What is it?\n\n**You**\n\n*halves.png (400 × 300 px)*\n\nWhat is it?\n\n**Answer** (nano)\n\nA field.\n"
    )
    other = open_page(page.url)
    open_chats(other)
    for _ in range(2):  # the second time it is there already
        other.set_input_files("#chat-file", str(tmp_path / "chats.json"))
        other.wait_for_selector("#toast.shown")
        wait_for_titles(other, "What is it?")
    other.click(".chat-open")
    wait_until(other, "() => document.querySelectorAll('.box').length === 1")
    assert answer_text(other) == "A field."
    ask(other, "And?")
    assert backend.requests[-1].images[0].getpixel((200, 10)) == (40, 80, 220)


def broken_files() -> dict[str, str]:
    turn = {"id": "0" * 24, "parent": "", "shown": "x", "prompt": "x", "task": "ask", "query": "x", "pictures": []}
    answer = {"text": "y", "boxes": [], "model": "m"}
    chat = {"id": "1" * 24, "title": "t", "created": 1, "updated": 1, "chosen": {}, "pictures": [], "turns": []}
    picture = {"id": "2" * 24, "name": "p", "mark": None, "data": "data:image/svg+xml;base64,PHN2Zy8+"}
    file = {"format": "vl2-chats", "version": 1}
    broken: dict[str, Any] = {
        "text": "no JSON",
        "other": {"format": "another", "version": 1, "chats": []},
        "newer": {**file, "version": 2, "chats": []},
        "orphan": {**file, "chats": [{**chat, "turns": [{**turn, "parent": "5" * 24, "answer": answer}]}]},
        "number": {**file, "chats": [{**chat, "turns": [{**turn, "answer": {**answer, "text": 5}}]}]},
        "blocks": {**file, "chats": [{**chat, "turns": [{**turn, "answer": {**answer, "blocks": [{"type": 1}]}}]}]},
        "picture": {**file, "chats": [{**chat, "pictures": [picture]}]},
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in broken.items()}


def test_a_file_that_is_not_of_chats_is_refused(page: Any, tmp_path: Path):
    for name, text in broken_files().items():
        (tmp_path / f"{name}.json").write_text(text)
        page.evaluate("document.getElementById('chats-warning').hidden = true")
        page.set_input_files("#chat-file", str(tmp_path / f"{name}.json"))
        page.wait_for_selector("#chats-warning")
        assert page.locator("#chats-warning").inner_text().startswith(f"{name}.json is not a file of chats")
    assert titles(page) == []


@pytest.mark.parametrize(
    ("script", "told"),
    [(DENIED, "does not let the page keep chats"), (FULL, "storage is full"), (NO_STORAGE, "")],
    ids=["denied", "full", "no-local-storage"],
)
def test_a_browser_that_keeps_nothing_is_told_and_the_page_still_answers(
    open_page: Callable[..., Any], scripted_server: Any, backend: ScriptedBackend, script: str, told: str
):
    page = open_page(scripted_server[1].url, script=script)
    backend.text = "It works."
    ask(page, "Does it?")
    assert answer_text(page) == "It works."
    if told:
        page.wait_for_selector("#chats-warning")
        assert told in page.locator("#chats-warning").inner_text()
        assert titles(page) == []
    else:
        wait_for_titles(page, "Does it?")


def test_the_number_of_chats_is_limited(page: Any, backend: ScriptedBackend):
    fill = """async () => {
      const [{ ChatStore, MAX_CHATS }, { Conversation }] = await Promise.all(
        ["/web/chat_store.js", "/web/conversation.js"].map((path) => import(path)));
      const store = await ChatStore.open();
      for (let count = 0; count < MAX_CHATS; count += 1) await store.save(new Conversation({ title: `chat ${count}` }));
      return MAX_CHATS;
    }"""
    most = page.evaluate(fill)
    ask(page, "One more?")
    page.wait_for_selector("#chats-warning")
    assert page.locator("#chats-warning").inner_text().startswith(f"{most} chats are kept, which is the limit.")
    wait_until(page, "most => document.querySelectorAll('.chat').length === most", most)
    act(page, "chat 107", "Delete")
    page.locator(".chat-actions .danger").click()
    ask(page, "Again?")
    wait_until(page, "() => document.querySelector('.chat-title').textContent === 'One more?'")
    assert not page.locator("#chats-warning").is_visible()


def test_on_a_phone_the_list_lies_over_the_page(open_page: Callable[..., Any], scripted_server: Any, backend: Any):
    page = open_page(scripted_server[1].url, **PHONE)
    ask(page, "What?")
    assert not page.locator("#chats").is_visible()
    page.tap("#toggle-chats")
    assert page.locator("#chats").bounding_box()["width"] <= 390 * 0.87
    assert page.evaluate("document.activeElement.id") == "chat-search"
    page.keyboard.press("Escape")
    assert not page.locator("#chats").is_visible()
    assert page.evaluate("document.activeElement.id") == "toggle-chats"
    page.tap("#toggle-chats")
    page.tap("#chats-backdrop", position={"x": 380, "y": 300})
    assert not page.locator("#chats").is_visible()
    page.tap("#toggle-chats")
    page.tap(".chat-open")
    wait_until(page, "() => document.getElementById('chats').hidden")
    assert page.locator(".turn").count() == 2


def test_the_list_is_used_by_keyboard_alone(page: Any, backend: ScriptedBackend):
    ask(page, "What?")
    wait_for_titles(page, "What?")
    page.focus("#chat-search")
    order = []
    for _ in range(3):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.className.trim().split(' ').at(-1)"))
        if order[-1] == "chat-more":
            page.keyboard.press("Enter")
    assert order == ["chat-open", "chat-more", "small"]
    page.keyboard.press("Enter")
    page.keyboard.type("Renamed")
    page.keyboard.press("Enter")
    wait_for_titles(page, "Renamed")
    assert "chat-more" in page.evaluate("document.activeElement.className")
    page.focus("#toggle-chats")
    page.keyboard.press("Enter")
    assert not page.locator("#chats").is_visible()
    page.reload()
    assert not page.locator("#chats").is_visible()


def test_the_chat_that_is_shown_can_be_pressed_while_its_answer_is_coming(page: Any, backend: ScriptedBackend):
    backend.text = "One two three four five six."
    backend.pause_after = 3
    send(page, "Count.")
    wait_for_titles(page, "Count.")
    page.click(".chat-open")
    backend.go_on()
    wait_until(page, "() => document.querySelector('.answer[aria-busy=false]')")
    assert answer_text(page) == backend.text
