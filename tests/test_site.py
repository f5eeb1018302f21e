"""The documentation site: its navigation, its links, and the pages that are made from the code."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import vl2
from vl2.cli.parse import COMMANDS, GROUPS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@cache
def site_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_reference", ROOT / "tools" / "site_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_stands_in_the_navigation_once() -> None:
    trees = re.findall(r"^```{toctree}\n(.*?)^```", (DOCS / "index.md").read_text(encoding="utf-8"), re.M | re.S)
    lines = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    named = [re.sub(r".*<(.+)>$", r"\1", line) for line in lines]
    files = [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in files}
    assert sorted(named) == sorted(pages - {"index"})


@pytest.mark.parametrize("name", ["quick-start"])
def test_a_page_in_chinese_has_the_sections_and_blocks_of_the_english_one(name: str) -> None:
    english, chinese = ((DOCS / folder / f"{name}.md").read_text(encoding="utf-8") for folder in ("", "zh"))
    for marks in (r"^(#+) ", r"^```(\w+)$", r"^<!-- (not run: .+) -->$"):
        found = re.findall(marks, english, re.M)
        assert len(found) > 1
        assert re.findall(marks, chinese, re.M) == found


@pytest.mark.parametrize("name", ["index", "quick-start"])
def test_a_page_in_two_languages_leads_to_the_other(name: str) -> None:
    assert f"\nEnglish | [简体中文](zh/{name}.md)\n" in (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert f"\n[English](../{name}.md) | 简体中文\n" in (DOCS / "zh" / f"{name}.md").read_text(encoding="utf-8")


def test_a_decision_is_recorded_as_context_decision_and_consequences() -> None:
    records = re.split(r"^### ", (DOCS / "decisions.md").read_text(encoding="utf-8"), flags=re.M)[1:]
    parts = {text.splitlines()[0]: re.findall(r"^- \*\*(\w+)\.\*\* ", text, re.M) for text in records}
    assert parts
    assert {title: found for title, found in parts.items() if found != ["Context", "Decision", "Consequences"]} == {}


def test_every_marker_names_something_that_is_made() -> None:
    for page in DOCS.rglob("*.md"):
        for match in site_reference().MARKER.finditer(page.read_text(encoding="utf-8")):
            assert match["name"] in ("commands", "python", "http", "recipe") or (ROOT / match["name"]).is_file()


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[a](serving.md#safety)", "[a](../serving.md#safety)"),
        ("[a](../CHANGELOG.md)", "[a](changelog.md)"),
        ("[a](../CONTRIBUTING.md#releases)", "[a](contributing.md#releases)"),
        ("[the script](../launch/torchrun.sh)", "the script (`launch/torchrun.sh`)"),
        ("[`deploy/`](../deploy)", "`deploy/`"),
        ("[a](https://example.org/a.md) [b](#here)", "[a](https://example.org/a.md) [b](#here)"),
        ("![a](img/nano.png)", "![a](img/nano.png)"),
        ("```text\n[a](../CHANGELOG.md)\n```\n[a](web.md)", "```text\n[a](../CHANGELOG.md)\n```\n[a](../web.md)"),
    ],
)
def test_a_link_leads_to_a_page_of_the_site_or_becomes_a_path(written: str, shown: str) -> None:
    assert site_reference().site_links(written, DOCS, DOCS / "project" / "a.md") == shown


def test_the_command_line_page_has_the_help_of_every_command() -> None:
    page = site_reference().commands_page()
    for name in COMMANDS:
        assert re.search(rf"^## vl2 {name}\n\n```text\nusage: vl2 {name} ", page, re.M), name
    for first, group in GROUPS.items():
        for second in group:
            assert re.search(rf"^### vl2 {first} {second}\n\n```text\nusage: vl2 {first} {second} ", page, re.M)


def test_the_python_page_has_every_public_name_and_the_comments_of_fields() -> None:
    page = site_reference().python_page()
    assert set(re.findall(r"^## (\w+)$", page, re.M)) == set(vl2.__all__)
    assert "| `temperature` | `float` | `0.0` | below LEAST_TEMPERATURE, decoding is greedy |" in page


def test_the_recipe_page_has_the_values_of_every_table() -> None:
    page = site_reference().recipe_page()
    assert "| `learning_rate` | `float` |  | the peak |" in page
    assert "| `workers` | `int` | `2` | threads that prepare packs in advance; 0 prepares each pack on demand |" in page


def test_the_http_page_has_the_endpoints_and_what_their_fields_take() -> None:
    pytest.importorskip("fastapi", reason="the `serve` extra is not installed")
    page = site_reference().http_page()
    for endpoint in ("POST /v1/chat/completions", "POST /v1/responses", "GET /v1/models", "POST /tokenize"):
        assert f"### {endpoint}\n" in page
    assert "| `messages` |" in page


def test_a_docstring_is_converted_to_the_markup_of_sphinx() -> None:
    written = ["`reuse` bounds *all* | `a` and more_"]
    assert list(site_reference().rest_lines(written)) == [r"``reuse`` bounds \*all\* \| ``a`` and more\_"]
