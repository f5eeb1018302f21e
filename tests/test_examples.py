"""Every example in the README and the docs runs as it stands (R12: circulating samples use names that are gone)."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from pathlib import Path

import pytest

from vl2.cli.main import run
from vl2.eval.score.iou import iou

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: (?P<why>[^>]+) -->\n)?```(?P<language>python|console)\n(?P<code>.*?)```", re.DOTALL)


def examples(language: str) -> list[pytest.param]:
    found = []
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
            if match["language"] == language and match["why"] is None:
                number = len(found) + 1
                found.append(pytest.param(match["code"], id=f"{page.stem}-{number}"))
    return found


@pytest.fixture(autouse=True)
def in_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where the repository's paths hold, but where nothing in it can be overwritten."""
    for name in ("examples", "recipes", "tests"):
        os.symlink(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("code", examples("python"))
def test_a_python_example_runs(code: str) -> None:
    if "transformers" in code and importlib.util.find_spec("transformers") is None:
        pytest.skip("needs the extra hf")
    exec(compile(code, "example", "exec"), {})


@pytest.mark.parametrize("code", examples("console"))
def test_a_command_line_example_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [line.removeprefix("$ ") for line in code.splitlines() if line.startswith("$ ")]
    assert commands
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "vl2"
        limit = ["--max-new-tokens", "8"] if arguments[0] in ("ask", "describe", "locate", "chat") else []
        assert run([*arguments, *limit]) == 0, capsys.readouterr().err
        captured = capsys.readouterr()
        assert captured.out or captured.err


# What the pictures show: the house's box is read off its pixels.
SHOWN = ("Station", "7.85", "35", "3", "今天天气很好")
HOUSE_PX = (1, 101, 57, 155)


def test_the_demo_gets_right_answers(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = re.findall(r"^\t\$\(BIN\)/vl2 (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    said = []
    for arguments in recipe:
        assert run(shlex.split(arguments)) == 0
        said.append(capsys.readouterr().out.strip())
    *answers, located = said
    assert tuple(answers) == SHOWN
    box = tuple(float(number) for number in located.splitlines()[0].split()[:4])
    assert iou(box, HOUSE_PX) > 0.7
    assert Path("demo.png").is_file()


def test_what_is_not_run_says_why() -> None:
    reasons = [m["why"] for page in PAGES for m in BLOCK.finditer(page.read_text(encoding="utf-8")) if m["why"]]
    assert all(re.match(r"downloads |needs an? ", reason) for reason in reasons)
    assert len(examples("python")) >= 3
    assert len(examples("console")) >= 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
