"""The page as a whole: keyboard alone, phone width, dark, Chinese, accessible, and nothing from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.web.scripted_backend import ScriptedBackend
from tests.web.talk import DONE, add, answer_text, ask, choose, rect, wait_until
from vl2.serve.web.static_files import STATIC, page_files

GROUNDED = "A <|ref|>field<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|> below."
PHONE = {"viewport": {"width": 390, "height": 760}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


def test_a_conversation_by_keyboard_alone(page: Any, backend: ScriptedBackend):
    backend.text = "Yes."
    page.evaluate("document.body.tabIndex = -1; document.body.focus()")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.input_value("#question") == "one\ntwo"
    page.keyboard.press("Enter")
    page.wait_for_selector(DONE)
    assert page.locator(".question-text").inner_text() == "one\ntwo"
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "task"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.querySelector('#tasks :checked').value") == "locate"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "send"


def test_the_order_of_the_keyboard_is_the_order_of_the_page(page: Any, picture: Path):
    add(page, picture)
    page.evaluate("document.body.tabIndex = -1; document.body.focus()")
    order = []
    for _ in range(21):
        page.keyboard.press("Tab")
        order.append(page.evaluate("(e => e.id || e.className || e.name)(document.activeElement)"))
    wanted = ["skip", "toggle-chats", "new-chat", "language", "theme", "open-settings", "chat-search", "import-chats",
              *["example"] * 4, "attachment-open", "remove", "question", "attach", "task", "send"]  # fmt: skip
    assert order[: len(wanted)] == wanted


def test_an_example_fills_in_picture_task_and_question(page: Any, backend: ScriptedBackend):
    backend.text = GROUNDED
    page.click(".example >> nth=0")
    wait_until(page, "() => document.querySelector('.cost')?.textContent")
    assert page.input_value("#question") == "green triangle"
    page.click("#send")
    page.wait_for_selector(DONE)
    assert backend.requests[-1].images[0].size == (168, 168)
    page.click("#new-chat")
    assert page.locator(".turn").count() == 0
    assert page.locator("#welcome").is_visible()


def test_on_a_phone_everything_fits_and_can_be_reached(
    open_page: Callable[..., Any], scripted_server, backend, picture: Path
):
    backend.text = GROUNDED + " " + "word " * 60
    page = open_page(scripted_server[1].url, **PHONE)

    def overflow() -> int:
        return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))

    assert overflow() <= 0
    add(page, picture)
    assert overflow() <= 0
    choose(page, "describe")
    page.tap("#send")
    page.wait_for_selector(DONE)
    assert overflow() <= 0
    frame = page.locator(".frame").bounding_box()
    assert frame["x"] >= 0
    assert frame["x"] + frame["width"] <= 390
    for control in ("#send", "#attach", "#question", "#open-settings", "#new-chat"):
        place = page.locator(control).bounding_box()
        assert place["x"] >= 0
        assert place["x"] + place["width"] <= 390
        assert place["y"] + place["height"] <= 760
        assert place["height"] >= 30


@pytest.mark.parametrize("width", [320, 360, 390, 768])
@pytest.mark.parametrize("locale", ["en-GB", "zh-CN"])
def test_every_task_can_be_seen_and_chosen_at_any_width(
    open_page: Callable[..., Any], scripted_server, backend, locale: str, width: int
):
    phone = {**PHONE, "viewport": {"width": width, "height": 640}, "locale": locale}
    page = open_page(scripted_server[1].url, **phone)
    tasks = page.locator(".task")
    assert tasks.count() == 6
    for task in tasks.all():
        left, top, right, bottom = rect(task)
        assert left >= 0
        assert right <= width
        assert bottom <= 640
        middle = [(left + right) / 2, (top + bottom) / 2]
        # What is there is the task itself: nothing lies over it, and no edge cuts it off.
        assert task.evaluate("(task, [x, y]) => task.contains(document.elementFromPoint(x, y))", middle)
        task.tap()
        assert task.locator("input").is_checked()
        for control in ("#attach", "#send"):
            assert rect(page.locator(control))[2] <= width
    page.focus("#tasks :checked")
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.querySelector('#tasks :checked').value") == "ask"


def test_a_phone_names_buttons_that_have_no_words_and_warns_of_wrong_answers(
    open_page: Callable[..., Any], scripted_server, backend
):
    page = open_page(scripted_server[1].url, **PHONE)
    assert page.get_by_text("Answers can be wrong: check them.").is_visible()
    assert page.get_by_text("it cannot read documents or describe photos").is_visible()
    assert page.locator("#camera-file").get_attribute("capture") == "environment"
    for name in ("Send", "New chat", "Chats", "Add pictures", "Take a photograph", "Settings", "Light or dark theme"):
        assert page.get_by_role("button", name=name, exact=True).count() == 1


def test_numbers_and_nouns_agree(page: Any):
    """Of every sentence with a number: one is one thing, and two are two, in English and in Chinese."""
    said = """async (language) => {
      const { say, setLanguage } = await import("/web/i18n.js");
      setLanguage(language);
      const values = (value) => Array(10).fill(value);
      return ["tokens", "planAll", "planOver", "figures", "figuresWhole", "usage", "picture", "tooMany",
              "chatsUsage", "imported"].flatMap(
        (key) => [say(key, ...values(1)), say(key, ...values(2)), say(key, ...values(0))]);
    }"""
    for sentence in page.evaluate(said, "en"):
        assert not re.search(r"\b1 (?:tokens|tiles|boxes|pictures|chats)\b", sentence)
        assert not re.search(r"\b[02] (?:token|tile|box|picture|chat)\b", sentence)
        assert not re.search(r"[{}|]", sentence)
    for sentence in page.evaluate(said, "zh"):
        assert not re.search(r"[{}|]|[a-z]{4,}", sentence)


def test_a_picture_of_one_tile_costs_one_tile(page: Any, tmp_path: Path):
    Image.new("RGB", (100, 100), "white").save(tmp_path / "small.png")
    add(page, tmp_path / "small.png")
    assert " tokens for 1 tile;" in page.locator("#plan").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_system_until_a_person_chooses(open_page, scripted_server, backend, scheme: str):
    page = open_page(scripted_server[1].url, color_scheme=scheme)

    def brightness() -> float:
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3

    assert (brightness() > 128) == (scheme == "light")
    page.click("#theme")
    assert brightness() > 128
    page.click("#theme")
    assert brightness() < 128
    page.reload()
    assert brightness() < 128


def test_a_browser_in_chinese_gets_a_page_in_chinese(open_page, scripted_server, backend, picture: Path):
    page = open_page(scripted_server[1].url, locale="zh-CN")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    assert page.locator("#welcome-title").inner_text() == "向图片提问"
    backend.text = "一片田野。"
    add_in_chinese = "() => document.querySelector('.cost')?.textContent.endsWith('个词元')"
    page.set_input_files("#file", str(picture))
    wait_until(page, add_in_chinese)
    ask(page, "这是什么？")
    assert answer_text(page) == "一片田野。"
    page.click("#language")
    assert page.locator("#send").inner_text() == "Send"
    assert page.evaluate("document.documentElement.lang") == "en"


def test_a_page_follows_the_browsers_language_until_a_person_chooses_one(open_page, scripted_server, backend):
    page = open_page(scripted_server[1].url, locale="zh-CN")
    assert page.evaluate("localStorage.getItem('vl2.language')") is None
    assert page.locator("#language").inner_text() == "English"
    page.click("#language")
    assert page.locator("#language").inner_text() == "中文"
    assert page.locator("#language").get_attribute("lang") == "zh"
    page.reload()
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.locator("#welcome-title").inner_text() == "Ask about your pictures"
    page.click("#language")
    page.reload()
    assert page.evaluate("document.documentElement.lang") == "zh-CN"


@pytest.mark.parametrize("phone", [{}, PHONE], ids=["desktop", "phone"])
def test_nothing_in_english_is_left_on_a_page_in_chinese(
    open_page, scripted_server, backend, picture: Path, phone: dict[str, Any]
):
    """All words that a person reads or hears, but names: of the page, the model, formats and keys."""
    backend.text = "一片<|ref|>田野<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|>。"
    page = open_page(scripted_server[1].url, locale="zh-CN", **phone)
    seen = """() => [...document.querySelectorAll("body *")]
      .filter((e) => !e.closest("script, noscript, #language"))
      .flatMap((e) => [e.title, e.ariaLabel, e.placeholder, e.alt,
       ...[...e.childNodes].filter((n) => n.nodeType === Node.TEXT_NODE).map((n) => n.data)])
      .filter((text) => /[a-z]{2,}/i.test(text ?? ""))"""
    allowed = r"vl2|nano|halves\.png|Shift|API|JSON|PNG|Oslo|Markdown|[kM]B|CSV|Schema"
    left = page.evaluate(seen)
    page.set_input_files("#file", str(picture))
    wait_until(page, "() => document.querySelector('.cost')?.textContent")
    choose(page, "describe")
    ask(page)
    left += page.evaluate(seen)
    page.set_input_files("#file", str(picture))
    page.click(".attachment-open")
    left += page.evaluate(seen)
    assert len(left) > 3
    assert [text for text in left if re.search("[A-Za-z]{2,}", re.sub(allowed, "", text))] == []


def test_both_languages_say_the_same_things(page: Any):
    english, chinese = page.evaluate(
        """async () => {
          const [{ EN }, { ZH }] = await Promise.all([import("/web/words_en.js"), import("/web/words_zh.js")]);
          return [EN, ZH].map((words) => Object.entries(words).map(
            ([key, text]) => [key, [...text.matchAll(/\\{(\\d)/g)].map((match) => match[1]).sort()]));
        }"""
    )
    assert len(english) > 60
    assert sorted(english) == sorted(chinese)


def test_every_word_that_is_said_is_in_the_table():
    table = (STATIC / "words_en.js").read_text(encoding="utf-8")
    known = set(re.findall(r"^ {2}(\w+): ", table, re.M))
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    said = set(re.findall(r'data-i18n(?:-title|-label|-placeholder)?="(\w+)"', page))
    for path in STATIC.glob("*.js"):
        said |= set(re.findall(r'\b(?:say|tool|action)\("(\w+)"', path.read_text(encoding="utf-8")))
    assert said <= known


def test_an_accessibility_checker_finds_nothing(open_page, scripted_server, backend, picture: Path):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="the `browser` extra is not installed"
    ).Axe()
    for scheme in ("light", "dark"):
        backend.text = GROUNDED + "\n\n| a | b |\n|---|---|\n| 1 | 2 |"
        page = open_page(scripted_server[1].url, color_scheme=scheme, reduced_motion="reduce")
        found = [axe.run(page)]
        add(page, picture)
        ask(page, "What?")
        add(page, picture)
        found.append(axe.run(page))
        page.click(".attachment-open")
        found.append(axe.run(page))
        page.keyboard.press("Escape")
        page.click("#open-settings")
        found.append(axe.run(page))
        violations = [(v["id"], [n["target"] for n in v["nodes"]]) for r in found for v in r.response["violations"]]
        assert violations == []


def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_but_its_files(scripted_server):
    url = scripted_server[1].url
    answer = httpx.get(url)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    for name, file in page_files().items():
        if not name.endswith(".woff2"):
            text = file.body.decode("utf-8")
            assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//|@import|innerHTML|eval\(""", text), name
            assert not re.findall(r"url\((?!fonts/)", text), name
        assert httpx.get(f"{url}/web/{name}").content == file.body
    for name in ("../app.py", "..%2fpage.py", "page.py", "nothing.js", "%2e%2e/page.py"):
        assert httpx.get(f"{url}/web/{name}").status_code == 404
    tag = httpx.get(f"{url}/web/app.js").headers["etag"]
    assert httpx.get(f"{url}/web/app.js", headers={"If-None-Match": tag}).status_code == 304


def test_all_modules_are_asked_for_at_once():
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    named = re.findall(r'<link rel="modulepreload" href="/web/([^"]+)">', page)
    assert named == sorted(path.name for path in STATIC.glob("*.js") if path.name != "app.js")


def test_the_files_that_are_not_our_own_are_as_they_were_published():
    told = (STATIC / "markdown-it.LICENSES.txt").read_text(encoding="utf-8")
    assert sha256((STATIC / "markdown-it.umd.min.js").read_bytes()).hexdigest() in told
    for part in ("markdown-it", "entities", "linkify-it", "mdurl", "punycode.js", "uc.micro"):
        assert f"==== {part}-" in told
    told = (STATIC / "katex" / "KaTeX.LICENSE.txt").read_text(encoding="utf-8")
    files = [path for path in (STATIC / "katex").rglob("*") if path.suffix in (".js", ".css", ".woff2")]
    assert len(files) == 22
    assert all(sha256(path.read_bytes()).hexdigest() in told for path in files)


def test_tiles_of_sizes_that_are_none_are_refused(scripted_server):
    for messages in ([], [[{"width": 0, "height": 5}]], [[{"width": 5}]], [[{"width": 1.5, "height": 2}]], "x"):
        answer = httpx.post(f"{scripted_server[1].url}/v1/images/tiles", json={"messages": messages})
        assert answer.status_code in (400, 422)
        assert json.loads(answer.text)["error"]["message"]
