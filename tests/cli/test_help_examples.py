"""What `--help` shows can be typed: every example is read by its command, and those of the built-in model are answered.

What is expected is what tools/draw_examples.py draws into the pictures.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.drawn_examples import right_boxes
from vl2.cli.parse import COMMANDS, DESCRIPTION, GROUPS, parse
from vl2.eval.score.boxes import iou

ROOT = Path(__file__).parents[2]
KINDS = {**COMMANDS, **{f"{group} {name}": kind for group, kinds in GROUPS.items() for name, kind in kinds.items()}}
# Commands whose examples need data, time, a GPU or a port that a test does not have: they are read, and not run.
NOT_RUN = (
    "serve",
    "bench",
    "quantize",
    "data",
    "eval run",
    "eval compare",
    "eval report",
    "train",
    "finetune",
    "plan",
    "assemble",
    "log",
    "models remove",
)


@dataclass(frozen=True)
class Example:
    """One line of a help text."""

    line: str

    @property
    def arguments(self) -> list[str]:
        command = self.line.rpartition("| ")[2].partition(" > ")[0]
        return shlex.split(command[command.index("vl2 ") :])[1:]

    @property
    def runs_here(self) -> bool:
        needs_more = bool({"--model", "--data"} & {*self.arguments})
        words = " ".join(self.arguments[:2])
        return not needs_more and not any(words == name or words.startswith(f"{name} ") for name in NOT_RUN)


def examples() -> Iterator[Example]:
    seen = set()
    for text in (DESCRIPTION, *(inspect.getdoc(kind) or "" for kind in KINDS.values())):
        shown = text.partition("Examples:\n")[2].partition("\n\n")[0]
        for line in shown.splitlines():
            if line.strip() not in seen:
                seen.add(line.strip())
                yield Example(line.strip())


EXAMPLES = list(examples())
RUN = [example for example in EXAMPLES if example.runs_here]


@pytest.fixture(autouse=True)
def in_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where the repository's paths hold, but where nothing in it can be overwritten."""
    for name in ("examples", "recipes"):
        os.symlink(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_every_command_has_examples(name: str) -> None:
    text = inspect.getdoc(KINDS[name]) or ""
    assert f"vl2 {name}" in text.partition("Examples:\n")[2]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.line)
def test_every_example_is_read_by_its_command(example: Example) -> None:
    arguments = example.arguments
    if arguments[0] == "train" and arguments[1] == "my.toml":
        arguments[1] = "recipes/tiny/alignment.toml"
    parse(arguments)


def of(words: str) -> Example:
    """Return the example that is run and has these words, so that none is left out by a new wording."""
    (found,) = [example for example in RUN if words in example.line]
    return found


def test_a_question_about_a_chart(vl2) -> None:
    assert vl2(*of("Oslo").arguments).out == "35\n"


def test_a_picture_from_a_pipe(vl2) -> None:
    ran = vl2(*of("cat examples/word.png").arguments, stdin=Path("examples/word.png").read_bytes())
    assert json.loads(ran.out)["text"] == "Station"


def test_a_chat_about_a_scene(vl2) -> None:
    ran = vl2(*of("vl2 chat").arguments, stdin=b"How many blue stars are there?\n")
    assert ran.out == "3\n"


def test_a_thing_is_located_and_drawn(vl2) -> None:
    ran = vl2(*of("green house").arguments)
    *corners, _, _ = ran.out.splitlines()[0].split()
    assert iou(tuple(map(float, corners)), right_boxes("scene", "green house")[0]) > 0.7
    assert Image.open("boxes.png").size == Image.open("examples/scene.png").size


def test_documents_are_read(vl2) -> None:
    one, two = (example for example in RUN if example.arguments[0] == "read")
    assert vl2(*one.arguments).out == "Station\n"
    ran = vl2(*two.arguments)
    assert [json.loads(line)["text"] for line in ran.out.splitlines()] == ["Station", "今天天气很好"]


def test_a_batch_writes_markdown(vl2) -> None:
    assert vl2(*of("text.md").arguments).code == 0
    text = Path("text.md").read_text(encoding="utf-8")
    assert re.findall(r"^[^#\n].*", text, re.MULTILINE) == ["Station", "今天天气很好"]


def test_pictures_and_sizes_are_inspected(vl2) -> None:
    looked_at = [example for example in RUN if example.arguments[0] == "inspect"]
    assert len(looked_at) >= 4
    for example in looked_at:
        ran = vl2(*example.arguments)
        assert ran.code == 0, ran.err
        assert ran.out
    assert Image.open("tiles.png").size


def test_tasks_are_listed_and_shown(vl2) -> None:
    for example in (each for each in RUN if each.arguments[0] == "eval"):
        ran = vl2(*example.arguments)
        assert (ran.code, ran.err) == (0, "")
        assert ran.out


def test_the_built_in_model_is_verified(vl2) -> None:
    looked_at = [example for example in RUN if example.arguments[:2] == ["verify", "nano"]]
    assert looked_at
    for example in looked_at:
        ran = vl2(*example.arguments)
        assert ran.code == 0, ran.err
        assert ran.out.startswith("# vl2 verify")


def test_models_are_listed(vl2, hub_cache) -> None:
    for example in (each for each in RUN if each.arguments[0] == "models"):
        ran = vl2(*example.arguments)
        assert (ran.code, ran.err) == (0, "")
        assert "nano" in ran.out


def test_scripts_of_completion_are_printed(vl2) -> None:
    shells = [example for example in RUN if example.arguments[0] == "completion"]
    assert len(shells) == 2
    for example in shells:
        assert "vl2" in vl2(*example.arguments).out


def test_no_example_of_the_built_in_model_is_left_out() -> None:
    commands = {example.arguments[0] for example in RUN}
    assert commands == {
        "ask", "chat", "locate", "read", "batch", "inspect", "eval", "verify", "models", "completion",
    }  # fmt: skip
    asking = [example for example in RUN if example.arguments[0] in ("ask", "chat", "locate", "read", "batch")]
    assert len(asking) == 7
