"""Running a job: every item once and in order, errors recorded, and going on after a crash and a full disk."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.ocr.golden import SMALLEST_MODE, toy_vlm
from tests.reference import CHECKPOINTS, IMAGES, reference_vlm
from vl2.batch_job.item import BatchItem, BatchRequest, LineFile
from vl2.batch_job.run_batch import BatchProgress, run_batch
from vl2.errors import UserError
from vl2.infer.constraint_boxes import WellFormedBoxes
from vl2.infer.prompts import locate_prompt
from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import VLM
from vl2.process.conversation import user_turn
from vl2.resumable_log import read_lines

QUESTIONS = [f"question {n}" for n in range(12)]


@pytest.fixture(params=["DeepSeek-VL2", "deepseek-ocr", "deepseek-ocr-2"])
def vlm(request: pytest.FixtureRequest) -> VLM:
    name = request.param
    base = reference_vlm("base") if name == "DeepSeek-VL2" else toy_vlm(SMALLEST_MODE[name], name)
    return VLM(base.model, base.processor, folder=base.folder)


def asking(name: str, question: str, images: tuple[Any, ...] = (), **options: Any) -> BatchItem:
    made = GenerateOptions(**{"max_new_tokens": 6, **options})
    return BatchItem(id=name, read=lambda: BatchRequest(turns=[user_turn(question, images)], options=made))


def failing(name: str, message: str) -> BatchItem:
    def fail() -> BatchRequest:
        raise UserError(message)

    return BatchItem(id=name, read=fail)


def ids(path: Path) -> list[str]:
    return [line["id"] for line in read_lines(path)]


def test_lines_come_in_the_order_of_the_items_with_the_texts_of_one_by_one(vlm: VLM, tmp_path: Path) -> None:
    items = [asking(f"i{n}", q, max_new_tokens=3 + 7 * (n % 3)) for n, q in enumerate(QUESTIONS)]
    seen: list[BatchProgress] = []
    done = run_batch(vlm, items, tmp_path / "out.jsonl", report=seen.append)
    lines = list(read_lines(tmp_path / "out.jsonl"))
    assert [line["id"] for line in lines] == [item.id for item in items]
    for n, line in enumerate(lines):
        reply = vlm.chat(QUESTIONS[n], max_new_tokens=3 + 7 * (n % 3))
        assert (line["text"], line["finish_reason"]) == (reply.text, reply.finish_reason)
    assert (done.done, done.failed, done.num_left) == (12, 0, 0)
    assert [p.done for p in seen] == list(range(13))


def test_an_item_that_fails_is_recorded_and_the_others_go_on(vlm: VLM, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes((IMAGES / "square384.png").read_bytes()[:500])
    items = [
        asking("good", "hello"),
        asking("damaged", "hello", (str(damaged),)),
        failing("unread", "no such\npage"),
        asking("long", "word " * 2 * vlm.limits.max_context),
        asking("narrow", "hello", max_new_tokens=5, constraint=WellFormedBoxes(only_boxes=True)),
        asking("also good", "hello"),
    ]  # fmt: skip
    done = run_batch(vlm, items, tmp_path / "out.jsonl")
    lines = {line["id"]: line for line in read_lines(tmp_path / "out.jsonl")}
    assert list(lines) == [item.id for item in items]
    assert "it is damaged" in lines["damaged"]["error"]
    assert lines["unread"]["error"] == "no such page"
    assert f"the context is {vlm.limits.max_context}" in lines["long"]["error"]
    assert "max_new_tokens must be at least" in lines["narrow"]["error"]
    assert lines["good"]["text"] == lines["also good"]["text"]
    assert done.failed == 4


def test_a_second_run_asks_only_what_is_left(vlm: VLM, tmp_path: Path) -> None:
    items = [asking(f"i{n}", q) for n, q in enumerate(QUESTIONS)]
    out = tmp_path / "out.jsonl"
    run_batch(vlm, items[:5], out)
    before = out.read_bytes()
    out.write_bytes(before + b'{"id": "i5", "te')  # killed while it wrote
    done = run_batch(vlm, items, out)
    assert (done.done_before, done.done) == (5, 7)
    assert out.read_bytes().startswith(before)
    assert ids(out) == [item.id for item in items]
    assert run_batch(vlm, items, out).done == 0


def test_lines_of_another_job_and_files_of_another_kind_are_refused(vlm: VLM, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run_batch(vlm, [asking("a", "x")], out)
    with pytest.raises(UserError, match="another job: this one has no item 'a'"):
        run_batch(vlm, [asking("b", "x")], out)
    out.write_text('{"text": "no id"}\n')
    with pytest.raises(UserError, match="line 1 has no id"):
        run_batch(vlm, [asking("b", "x")], out)


def test_two_runs_at_once_are_refused(vlm: VLM, tmp_path: Path) -> None:
    with LineFile(tmp_path / "out.jsonl"), pytest.raises(UserError, match="in use by another run"):
        run_batch(vlm, [asking("a", "x")], tmp_path / "out.jsonl")


def test_a_full_disk_is_one_line_and_the_job_goes_on_when_there_is_room(
    vlm: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [asking(f"i{n}", q) for n, q in enumerate(QUESTIONS)]
    out = tmp_path / "out.jsonl"
    append = LineFile.append

    def full_after_four(self: LineFile, line: Mapping[str, Any]) -> None:
        if len(self.keys) == 4:
            self._file.write(b'{"id": "i4", "te')  # the part that still found room
            self._file.truncate(self._end)
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, line)

    monkeypatch.setattr(LineFile, "append", full_after_four)
    with pytest.raises(UserError, match=r"out.jsonl: No space left on device; 4 of 12 are done") as caught:
        run_batch(vlm, items, out)
    assert "\n" not in str(caught.value)
    assert ids(out) == ["i0", "i1", "i2", "i3"]
    monkeypatch.undo()
    assert run_batch(vlm, items, out).done_before == 4
    assert ids(out) == [item.id for item in items]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are of Unix")
def test_a_write_that_is_cut_short_leaves_whole_lines(tmp_path: Path) -> None:
    program = f"""
import resource, signal, sys
from pathlib import Path
from vl2.batch_job.item import LineFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with LineFile(Path({str(tmp_path / "out.jsonl")!r})) as file:
    for n in range(100):
        try:
            file.append({{"id": str(n), "text": "x" * 50}})
        except OSError as error:
            sys.exit(f"{{n}} {{error.strerror}}")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    written, _, said = done.stderr.partition(" ")
    assert said.strip() == "File too large"
    assert ids(tmp_path / "out.jsonl") == [str(n) for n in range(int(written))]
    assert int(written) > 10


def test_pictures_carry_the_boxes_of_the_answers(vlm: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = Image.new("RGB", (200, 100), "white")
    tag = "<|ref|>cup<|/ref|><|det|>[[100, 100, 500, 900]]<|/det|>"
    monkeypatch.setattr("vl2.infer.vlm.ReplyBuilder.build", with_text(tag))
    run_batch(vlm, [asking("a/b c.png", locate_prompt("cup"), (photo,))], tmp_path / "o.jsonl", draw=tmp_path / "drawn")
    (line,) = read_lines(tmp_path / "o.jsonl")
    assert (line["image_size"], line["boxes"][0]["xyxy_px"]) == ([200, 100], [20.0, 10.0, 100.1, 90.1])
    (drawn,) = (tmp_path / "drawn").iterdir()
    picture = Image.open(drawn)
    assert picture.size == (200, 100)
    assert picture.getpixel((20, 50)) != (255, 255, 255)
    assert picture.getpixel((60, 50)) == (255, 255, 255)


def with_text(text: str) -> Callable[..., Any]:
    from dataclasses import replace

    from vl2.infer.vlm import ReplyBuilder

    build = ReplyBuilder.build
    return lambda self: replace(build(self), text=text)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is of Unix")
def test_a_job_that_is_killed_again_and_again_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    requests, out = tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
    count = 40
    requests.write_text("".join(json.dumps({"id": f"r{n}", "question": f"question {n}"}) + "\n" for n in range(count)))
    command = [sys.executable, "-c", "from vl2.cli.main import main; main()", "batch", str(requests), "-o", str(out),
               "-m", str(CHECKPOINTS / "base"), "--device", "cpu", "--max-new-tokens", "24", "-q"]  # fmt: skip
    kills = 0
    kept = b""
    for wanted in (5, 12):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < wanted):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert out.read_bytes().startswith(kept)
        kept = out.read_bytes()[: out.read_bytes().rfind(b"\n") + 1]
    assert kills == 2
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert out.read_bytes().startswith(kept)
    assert ids(out) == [f"r{n}" for n in range(count)]
    alone = reference_vlm("base").chat("question 39", max_new_tokens=24, max_repeats=8)
    assert list(read_lines(out))[39]["text"] == alone.text
