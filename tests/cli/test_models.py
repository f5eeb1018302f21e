"""`vl2 models` on a cache made here: what it lists, what it removes, and what it refuses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from tests.hub_cache import add_repo, bytes_of
from vl2.checkpoint.memory_plan import FORMATS, MemoryPlan
from vl2.checkpoint.resolve import RELEASED
from vl2.cli.main import run
from vl2.config import ModelConfig, preset

TINY = RELEASED["tiny"]


def test_the_names_that_can_be_typed_are_listed(vl2, hub_cache: Path, checkpoint: Path) -> None:
    add_repo(hub_cache, TINY, checkpoint)
    ran = vl2("models")
    assert (ran.code, ran.err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in ran.out.splitlines()[2:] if line.startswith("  ")}
    assert list(rows) == ["nano", "tiny", "small", "base"]
    assert rows["tiny"][:2] == f"{bytes_of(checkpoint) / 1e6:.1f} MB".split()
    assert rows["base"][0] == "-"
    # As in the table of sizes of the README, which the planner's own tests hold.
    assert rows["base"][1:] == ["56.42", "GB", "29.47", "GB", "17.79", "GB"]
    assert f"tiny   {TINY} in {hub_cache / 'models--deepseek-ai--deepseek-vl2-tiny'}" in ran.out
    assert "Not downloaded: small, base." in ran.out
    assert "`vl2 models remove tiny`" in ran.out


def test_without_a_cache_the_built_in_model_is_listed(vl2, hub_cache: Path) -> None:
    ran = vl2("models", "list")
    assert (ran.code, ran.err) == (0, "")
    assert "nano   built in, " in ran.out
    assert "models remove" not in ran.out


def test_everything_is_there_as_json(vl2, hub_cache: Path, checkpoint: Path) -> None:
    repo = add_repo(hub_cache, TINY, checkpoint)
    listed = {model["name"]: model for model in json.loads(vl2("models", "--json").out)}
    assert list(listed) == ["nano", "tiny", "small", "base"]
    config = ModelConfig.from_file(checkpoint / "config.json")
    context = config.language_config.max_position_embeddings
    assert listed["tiny"] == {
        "name": "tiny",
        "hub_id": TINY,
        "folder": str(next((repo / "snapshots").iterdir())),
        "bytes_on_disk": bytes_of(checkpoint),
        "is_complete": True,
        "commits": ["0123456789abcdef0123456789abcdef01234567"],
        "memory": {form: MemoryPlan.of(config, form, context).total for form in FORMATS},
    }
    assert listed["small"]["folder"] is None
    assert listed["small"]["memory"]["int4"] == MemoryPlan.of(preset("small"), "int4", 4096).total


def test_quantized_files_need_the_memory_of_their_own_format(vl2, hub_cache: Path, tmp_path: Path) -> None:
    assert vl2("quantize", "nano", tmp_path / "small", "--weights", "int8").code == 0
    add_repo(hub_cache, "me/nano-int8", tmp_path / "small")
    (listed,) = [model for model in json.loads(vl2("models", "--json").out) if model["name"] == "me/nano-int8"]
    assert list(listed["memory"]) == ["int8"]
    (row,) = [line.split() for line in vl2("models").out.splitlines() if line.startswith("  me/nano-int8")]
    assert [row[3], row[6]] == ["-", "-"]  # bfloat16 and int4


def test_a_damaged_checkpoint_is_listed_and_can_be_removed(vl2, hub_cache: Path) -> None:
    add_repo(hub_cache, "me/broken", {"config.json": b'{"model_type": "deepseek_vl_v2", "language_config": 3}'})
    ran = vl2("models")
    (row,) = [line for line in ran.out.splitlines() if line.startswith("  me/broken")]
    assert "incomplete" in row
    assert vl2("models", "remove", "me/broken", "--yes").code == 0
    assert not (hub_cache / "models--me--broken").exists()


def test_what_is_removed_is_shown_first(vl2, hub_cache: Path, checkpoint: Path) -> None:
    repo = add_repo(hub_cache, TINY, checkpoint)
    freed = f"{bytes_of(checkpoint) / 1e6:.1f} MB"
    ran = vl2("models", "remove", "tiny", "--yes")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == f"vl2: {TINY}, 1 revision, {freed}, in {repo}\nvl2: deleted {TINY}: {freed} freed\n"
    assert not repo.exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [("y\n", 0, "freed"), ("n\n", 1, "nothing was deleted"), ("\n", 1, "nothing was deleted"), ("", 1, "nothing")],
)
def test_it_asks_on_a_terminal(
    hub_cache: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    code: int,
    says: str,
) -> None:
    repo = add_repo(hub_cache, TINY, checkpoint)
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert run(["models", "remove", "tiny"]) == code
    printed = capsys.readouterr().err
    assert "[y/N]" in printed
    assert says in printed
    assert repo.exists() == (code != 0)


def test_where_nobody_can_answer_nothing_is_deleted(vl2, hub_cache: Path, checkpoint: Path) -> None:
    repo = add_repo(hub_cache, TINY, checkpoint)
    ran = vl2("models", "remove", TINY, stdin=b"y\n")
    assert (ran.code, ran.err.splitlines()[1:]) == (
        1,
        ["vl2: nothing was deleted: --yes deletes without asking, where nobody can answer"],
    )
    assert repo.exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nano", "nano is part of this package"),
        ("small", "no checkpoint small in the cache"),
        ("google/bert", "google/bert is not a DeepSeek-VL2 checkpoint"),
        ("..", "no checkpoint .. in the cache"),
    ],
)
def test_what_is_not_a_downloaded_checkpoint_is_refused(vl2, hub_cache: Path, name: str, says: str) -> None:
    repo = add_repo(hub_cache, "google/bert", {"config.json": b'{"model_type": "bert"}'})
    ran = vl2("models", "remove", name, "--yes")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"vl2: {says}")
    assert repo.exists()
