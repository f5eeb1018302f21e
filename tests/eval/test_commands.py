"""`vl2 eval` as a user meets it: one line for every mistake, the figures on stdout, the rest in files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.eval.fixtures import cell, parquet
from vl2.cli.main import run
from vl2.eval.held_out import is_held_out

SMALL = ["--limit", "3", "--max-new-tokens", "3", "--quiet"]


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(["eval", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_run_prints_its_figures_and_two_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, "run", "count_objects", "presence", "--out", str(tmp_path / "a"), *SMALL)
    assert (code, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines()] == ["count_objects (vl2)", "presence (vl2)"]
    assert all("3 items" in line for line in out.splitlines())
    for name in ("results.jsonl", "run.json", "report.md", "report.html"):
        assert (tmp_path / "a" / "presence" / name).is_file()
    code, out, _ = said(capsys, "compare", str(tmp_path / "a"), str(tmp_path / "a"), "--json")
    compared = json.loads(out)
    assert [c["task"] for c in compared] == ["count_objects", "presence"]
    assert all(c["difference"] == 0 and c["p_bootstrap"] == 1 for c in compared)
    code, out, _ = said(capsys, "report", str(tmp_path / "a"), "--json")
    assert [report["items"] for report in json.loads(out)] == [3, 3]
    # A run of a time when the image scale was not recorded is still read, and may be of another scale.
    shutil.copytree(tmp_path / "a/presence", tmp_path / "old/presence")
    identity = tmp_path / "old/presence/run.json"
    identity.write_text(identity.read_text().replace('"paper, image scale 1.5"', '"paper"'))
    code, out, _ = said(capsys, "compare", str(tmp_path / "a/presence"), str(tmp_path / "old"), "--json")
    assert (code, json.loads(out)[0]["difference"]) == (0, 0)
    assert json.loads(out)[0]["interval"] != [0, 0]
    assert said(capsys, "report", str(tmp_path / "old"))[0] == 0


def test_a_cpu_computes_in_float32_unless_told_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dtype, flags in (("float32", []), ("bfloat16", ["--dtype", "bfloat16"])):
        out = tmp_path / dtype
        code, _, err = said(capsys, "run", "presence", "--device", "cpu", "--out", str(out), *SMALL, *flags)
        assert (code, err) == (0, "")
        assert json.loads((out / "presence" / "run.json").read_text())["arithmetic"] == f"{dtype} on cpu"


def test_every_task_is_shown_without_any_data(capsys: pytest.CaptureFixture[str]) -> None:
    from vl2.eval.task_catalog import TASKS

    for name, task in TASKS.items():
        if task.is_drawn:
            continue  # draws its first item, for which this machine may lack the fonts
        code, out, err = said(capsys, "show", name)
        assert (code, err) == (0, ""), name
        assert all(f"== {protocol}:" in out for protocol in task.protocols), name
        assert "   | " in out, name


def test_a_task_shows_its_prompt_on_real_data_and_how_an_answer_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"type": "human_test", "question": "How high?", "answer": "14", "image": cell()}
    parquet(tmp_path / "test-00000-of-00001.parquet", [row])
    _, out, _ = said(capsys, "show", "chartqa", "--data", str(tmp_path), "--protocol", "paper", "--answer", "14.5.")
    assert "   | How high?\n   | Answer the question using a single word or phrase.\n" in out
    assert "'14.5.' is read as '14.5', score 1" in out
    assert "gold: 14" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "docvq", "--out", "x"], "there is no task docvq: did you mean docvqa?"),
        (["run", "docvqa", "--out", "x"], "docvqa reads local files: say where with --data"),
        (["run", "presence", "--out", "x", "--protocol", "paper"], "protocols of presence are vl2, got paper"),
        (["run", "presence", "--out", "x", "--limit", "0"], "limit must be at least 1, got 0"),
        (["run", "nlvr", "--out", "x", "--data", "nowhere"], "--data nowhere is not there"),
        (["run", "nlvr", "--out", "x", "--data", "hub"], "nlvr has no dataset on the hub"),
        (["run", "presence", "--out", "x", "--judge-url", "localhost"], "base_url must be like http://"),
        (["run", "presence", "--out", "x", "--whole"], "presence keeps no items for training, so --whole would change"),
        (["show", "chartqa", "--protocol", "vl2"], "protocols of chartqa are paper, vlmevalkit, lmms-eval, got vl2"),
        (["show", "chartqa", "--answer", "14"], "an answer is scored against a gold answer: give the task's --data"),
        (["compare", "nowhere", "nowhere"], "nowhere holds no run"),
        (["report", "nowhere"], "nowhere holds no run"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = said(capsys, *arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_the_hubs_copy_is_taken_by_its_name_and_only_the_files_that_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str, list[str]]] = []

    def snapshot_download(name: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        asked.append((name, repo_type, allow_patterns))
        row = {"question": "Where?", "options": ["left"], "answer": "0", "image": cell()}
        for part in ("test", "validation"):
            if allow_patterns == [f"data/{part}-*"]:
                parquet(tmp_path / f"data/{part}-00000-of-00001.parquet", [row])
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    code, out, _ = said(capsys, "show", "ai2d", "--data", "hub")
    assert code == 0
    assert "A. left" in out
    assert said(capsys, "show", "ai2d", "--data", "hub", "--split", "validation")[0] == 0
    assert asked == [("lmms-lab/ai2d", "dataset", [f"data/{part}-*"]) for part in ("test", "validation")]
    code, _, err = said(capsys, "show", "ai2d", "--data", "hub", "--split", "dev")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "lmms-lab/ai2d has no data/dev-*: give local files with --data" in err


def nlvr(folder: Path, seen_groups: int = 4) -> Path:
    names = [f"group {n}" for n in range(100)]
    kept = next(name for name in names if is_held_out("nlvr", name))
    seen = [name for name in names if not is_held_out("nlvr", name)][:seen_groups]
    row = {"image": cell(), "sentence": "There is a box.", "label": True}
    parquet(folder / "dev-0.parquet", [{"id": str(n), "group": g, **row} for n, g in enumerate((kept, *seen))])
    return folder


def test_a_run_says_what_it_left_out_on_the_terminal_in_its_folder_and_in_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = nlvr(tmp_path / "data"), tmp_path / "out"
    code, printed, err = said(capsys, "run", "nlvr", "--data", str(data), "--out", str(out), "--max-new-tokens", "2")
    said_left_out = "4 items of groups that are kept for training"
    assert code == 0
    assert f"nlvr: left out: {said_left_out} (--whole asks all that can be asked)" in err.splitlines()
    assert f"1 items; left out: {said_left_out} (--whole asks all that can be asked)" in printed
    assert json.loads((out / "nlvr/run.json").read_text())["left_out"] == {"of groups that are kept for training": 4}
    for name in ("report.md", "report.html"):
        assert said_left_out in (out / "nlvr" / name).read_text(encoding="utf-8")
    whole = tmp_path / "whole"
    flags = ["--whole", "--max-new-tokens", "2", "--quiet", "--json"]
    code, printed, err = said(capsys, "run", "nlvr", "--data", str(data), "--out", str(whole), *flags)
    (found,) = json.loads(printed)
    assert (code, err, found["items"], found["left_out"]) == (0, "", 5, {})
    code, printed, err = said(capsys, "compare", str(out), str(whole))
    assert (code, printed, len(err.splitlines())) == (1, "", 1)
    assert "--whole False and True" in err
    # The pictures of the whole run are found again without the flag.
    assert said(capsys, "report", str(whole), "--data", str(data))[2] == ""


def test_data_of_which_all_is_left_out_say_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = nlvr(tmp_path / "data")
    seen = [f"group {n}" for n in range(100) if not is_held_out("nlvr", f"group {n}")]
    parquet(data / "dev-0.parquet", [{"id": "1", "group": seen[0], "image": cell(), "sentence": "A.", "label": True}])
    code, _, err = said(capsys, "run", "nlvr", "--data", str(data), "--out", str(tmp_path / "out"))
    assert code == 1
    assert "has no items in" in err
    assert "left out: 1 item of groups that are kept for training (--whole asks all that can be asked)" in err


def test_two_runs_of_another_test_are_refused_by_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"type": "human_test", "question": "How high?", "answer": "14", "image": cell()}
    parquet(tmp_path / "data/test-0.parquet", [row] * 4)
    base = ["run", "chartqa", "--data", str(tmp_path / "data"), "--max-new-tokens", "2", "--quiet"]
    for name, flags in (("a", []), ("b", ["--protocol", "lmms-eval"]), ("c", ["--tiling", "per-image"]),
                        ("d", ["--limit", "2"])):  # fmt: skip
        assert said(capsys, *base, "--out", str(tmp_path / name), *flags)[0] == 0
    for name, differs in (("b", "protocol paper and lmms-eval"), ("c", "tiling paper and per-image"), ("d", "--limit")):
        code, out, err = said(capsys, "compare", str(tmp_path / "a"), str(tmp_path / name))
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        assert differs in err
    assert said(capsys, "compare", str(tmp_path / "a"), str(tmp_path / "a"))[0] == 0


def test_the_built_in_model_has_no_published_figure_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"type": "human_test", "question": "How high?", "answer": "14", "image": cell()}
    parquet(tmp_path / "data/test-0.parquet", [row] * 2)
    flags = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "deepseek-vl2-tiny"), "--quiet"]
    code, out, _ = said(capsys, "run", "chartqa", *flags, "--max-new-tokens", "128")
    assert (code, "paper tiny" in out) == (0, False)
    text = (tmp_path / "deepseek-vl2-tiny/chartqa/report.md").read_text()
    assert "which is none of the published sizes" in text
    assert "published figure's" not in text
    assert "DeepSeek-VL2 tiny" not in (tmp_path / "deepseek-vl2-tiny/chartqa/report.html").read_text()
