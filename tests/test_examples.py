"""Every example in the README and the docs runs as it stands, and gives the output that stands beside it.

What the pictures show comes from what is drawn (drawn_examples.py), never from what a model said.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.drawn_examples import drawing, right_answer, right_boxes
from vl2.cli.main import run
from vl2.eval.score.boxes import iou

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
PAGES = [
    *READMES,
    ROOT / "CONTRIBUTING.md",
    ROOT / "src" / "vl2" / "nano" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"(<!-- not run: (?P<why>[^>]+) -->\n)?```(?P<language>python|console)\n(?P<code>.*?)```", re.DOTALL)
PRINTED = re.compile(r"^ *print\(.*\)  # (?P<text>.+)$", re.MULTILINE)
DEMO = re.compile(r"^\t\$\(BIN\)/vl2 (?P<command>.+)$(?:\n\t@echo \"\(Wrong: (?P<note>.+)\)\"$)?", re.MULTILINE)


def examples(language: str) -> list[pytest.param]:
    found = []
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
            if match["language"] == language and match["why"] is None:
                number = len(found) + 1
                found.append(pytest.param(match["code"], id=f"{page.stem}-{number}"))
    return found


def commands(block: str) -> list[tuple[str, str]]:
    """Split a block into commands, each with the output that stands under it ("" where none does)."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return [(command, output.strip()) for command, _, output in (part.partition("\n") for part in parts)]


def assert_right(arguments: list[str], output: str) -> None:
    """Check an answer of `ask` or `locate` against what is drawn in its picture."""
    command, question = arguments[:2]
    picture = Path(arguments[arguments.index("-i") + 1]).stem
    if command == "ask":
        assert output == right_answer(picture, question)
        return
    assert command == "locate"
    found = sorted(tuple(float(number) for number in line.split()[:4]) for line in output.splitlines())
    expected = right_boxes(picture, question)
    assert len(found) == len(expected)
    assert all(iou(box, drawn) > 0.7 for box, drawn in zip(found, expected, strict=True))
    assert all(line.split(maxsplit=4)[4] == question for line in output.splitlines())


@pytest.fixture(autouse=True)
def in_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where the repository's paths hold, but where nothing in it can be overwritten."""
    for name in ("examples", "recipes", "tests"):
        os.symlink(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("code", examples("python"))
def test_a_python_example_runs_and_prints_what_it_says(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "transformers" in code and importlib.util.find_spec("transformers") is None:
        pytest.skip("needs the extra hf")
    exec(compile(code, "example", "exec"), {})
    if said := [match["text"] for match in PRINTED.finditer(code)]:
        assert capsys.readouterr().out.splitlines() == said


@pytest.mark.parametrize("code", examples("console"))
def test_a_command_line_example_runs_and_prints_what_it_says(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands(code)
    for command, expected in commands(code):
        program, *arguments = shlex.split(command, comments=True)
        assert program == "vl2"
        assert run(arguments) == 0, capsys.readouterr().err
        captured = capsys.readouterr()
        assert captured.out or captured.err
        if arguments[0] in ("ask", "locate") and not {"--model", "-m", "--adapter"} & set(arguments):
            assert_right(arguments, captured.out.strip())
        if expected:
            assert captured.out.strip() == expected


def test_the_documents_say_only_what_the_pictures_show() -> None:
    """The outputs under the commands that ask the built-in model are the drawn values."""
    asked = [
        (arguments, output)
        for example in examples("console")
        for command, output in commands(example.values[0])
        if output and (arguments := shlex.split(command, comments=True)[1:])[0] in ("ask", "locate")
    ]
    assert len(asked) >= 3
    for arguments, output in asked:
        assert_right(arguments, output)


def printed_by_make(outputs: list[str]) -> str:
    """Return what `make demo` prints where its commands give these outputs."""
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ndemo:")[2].partition("\n\n")[0]
    lines: list[str] = []
    remaining = iter(outputs)
    for line in recipe.splitlines()[1:]:
        if line.startswith("\t@echo "):
            lines.append(shlex.split(line)[1])
        else:
            lines += [line.replace("\t$(BIN)/", ".venv/bin/"), next(remaining)]
    return "\n".join(lines)


def test_the_demo_gets_right_answers_or_says_which_are_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    shown = list(DEMO.finditer((ROOT / "Makefile").read_text(encoding="utf-8")))
    assert len(shown) == 6
    outputs: list[str] = []
    num_wrong = 0
    for match in shown:
        arguments = shlex.split(match["command"])
        assert run(arguments) == 0
        output = capsys.readouterr().out.strip()
        outputs.append(output)
        if match["note"] is None:
            assert_right(arguments, output)
            continue
        # The note gives the right answer, and goes as soon as the model reads it.
        num_wrong += 1
        truth = right_answer(Path(arguments[-1]).stem, arguments[1])
        assert f" {truth}." in match["note"]
        assert output != truth, "read rightly now: take the note out of the Makefile"
    assert num_wrong <= 1
    assert Path("demo.png").is_file()
    for page in READMES:
        assert f"```text\n{printed_by_make(outputs)}\n```\n" in page.read_text(encoding="utf-8"), page.name


def memory_rows(text: str) -> list[list[str]]:
    """Return the rows of `vl2 inspect`: a type of weights and five sizes, without what depends on the machine."""
    return [line.split()[:11] for line in text.splitlines() if re.match(r" +(float32|bfloat16|int8|int4) ", line)]


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_the_memory_table_in_the_readme_is_what_inspect_prints(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert run(["inspect", "tiny"]) == 0
    rows = memory_rows(page.read_text(encoding="utf-8"))
    assert len(rows) == 4
    assert rows == memory_rows(capsys.readouterr().out)


def test_both_readmes_have_the_same_commands_and_outputs() -> None:
    def blocks(page: Path) -> list[tuple[str, str]]:
        found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
        return [(kind, re.sub(r" +#.*", "", code) if kind == "sh" else code) for kind, code in found]

    english, chinese = map(blocks, READMES)
    assert len(english) >= 5
    assert chinese == english


@pytest.mark.parametrize("name", ["receipt", "shapes", "bill", "bars", "scene", "word"])
def test_the_pictures_are_those_that_are_drawn(name: str) -> None:
    drawn = getattr(drawing(), name)()
    drawn = drawn.image if name == "scene" else drawn
    kept = Image.open(ROOT / "examples" / f"{name}.png").convert("RGB")
    assert kept.size == drawn.size
    # Releases of Pillow smooth letters a little differently: by 0.4 of 255 in the worst square of 8 px.
    # Another digit changes such a square by 38.
    change = np.abs(np.asarray(kept, np.float32) - np.asarray(drawn, np.float32)).mean(2)
    assert np.lib.stride_tricks.sliding_window_view(change, (8, 8)).mean((2, 3)).max() < 5


def test_what_is_not_run_says_why() -> None:
    reasons = [m["why"] for page in PAGES for m in BLOCK.finditer(page.read_text(encoding="utf-8")) if m["why"]]
    assert all(re.match(r"downloads |needs an? ", reason) for reason in reasons)
    assert len(examples("python")) >= 3
    assert len(examples("console")) >= 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
