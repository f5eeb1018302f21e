"""The examples of docs/how-to/clients.md, as they stand there, against a server of the built-in model."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.drawn_examples import ROOT, right_answer
from vl2.infer.vlm import VLM

from .live_server import LiveServer

PAGE = (ROOT / "docs" / "how-to" / "clients.md").read_text(encoding="utf-8")
# The package that an example is for, by its heading.
PACKAGES = {"LangChain": "langchain_openai", "LlamaIndex": "llama_index", "LiteLLM": "litellm", "docling": "docling"}


def section(heading: str) -> str:
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def examples(heading: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", section(heading), re.M | re.S)


def run(heading: str, server: LiveServer, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int = 0) -> None:
    """Run an example in a folder, with the address and the model of the server in place of those on the page."""
    if importlib.util.find_spec(PACKAGES[heading]) is None:
        pytest.skip(f"{PACKAGES[heading]} is not installed")
    code = examples(heading)[number]
    assert "http://127.0.0.1:8000" in code
    assert re.search(r'"(openai/)?tiny"', code)
    os.symlink(ROOT / "examples", folder / "examples")
    monkeypatch.chdir(folder)
    code = re.sub(r'"(openai/)?tiny"', r'"\1nano"', code.replace("http://127.0.0.1:8000", server.url))
    exec(compile(code, heading, "exec"), {"__name__": heading})


def test_every_example_of_the_page_is_run_here_or_in_test_open_webui() -> None:
    numbers = {heading: len(examples(heading)) for heading in ("Open WebUI", *PACKAGES)}
    assert numbers == {"Open WebUI": 1, "LangChain": 2, "LlamaIndex": 1, "LiteLLM": 1, "docling": 1}
    assert len(re.findall(r"^```python$", PAGE, re.M)) == sum(numbers.values())


@pytest.mark.parametrize("heading", ["LangChain", "LlamaIndex", "LiteLLM"])
def test_a_client_gets_the_answer_that_the_model_gives(
    heading: str,
    server: LiveServer,
    nano: VLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(heading, server, tmp_path, monkeypatch)
    expected = nano.chat("What is the total amount?", images=[ROOT / "examples" / "bill.png"]).text
    assert capsys.readouterr().out.strip().removeprefix("assistant: ") == expected


def test_langchain_gets_a_call_of_its_function(
    server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("LangChain", server, tmp_path, monkeypatch, number=1)
    assert capsys.readouterr().out.strip() in ("set_light {'is_on': True}", "set_light {'is_on': False}")


def test_docling_gets_the_text_of_a_page(
    server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(ROOT / "examples" / "word.png").save(tmp_path / "report.pdf")
    run("docling", server, tmp_path, monkeypatch)
    assert capsys.readouterr().out.strip() == right_answer("word", "What does the image say?")
