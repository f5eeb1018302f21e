"""A run gives the same lines whatever the batch size, the interruptions and the number of processes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.eval.fixtures import picture_file
from vl2.errors import UserError
from vl2.eval.choose_items import limited, scan_items
from vl2.eval.judge import Judge
from vl2.eval.results import RESULTS, read_parts, read_results, read_run
from vl2.eval.run_task import EvalOptions, EvalProgress, answers, apply_protocol, run_task, tiling_text
from vl2.eval.task import DataSource, Item, JudgeRule, Protocol, Result, Score, Task, mean_measure, mean_score
from vl2.eval.task_catalog import find_task
from vl2.infer.vlm import VLM, load
from vl2.process.conversation import user_turn

CHECKPOINTS = Path(__file__).parents[1] / "golden" / "reference" / "checkpoints"
TASK = find_task("count_objects")
ITEMS = 18  # more than the largest batch
OPTIONS = EvalOptions(limit=ITEMS, batch_size=2, max_new_tokens=3, quiet=True)


def run(vlm: VLM, folder: Path, options: EvalOptions = OPTIONS, task: Task = TASK) -> list[Result]:
    return run_task(vlm, task, DataSource(), folder, options, model="nano")


@pytest.fixture(scope="module")
def whole(nano: VLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(nano, folder)
    return folder


@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_batch_size_changes_no_byte_of_the_results(nano: VLM, tmp_path: Path, whole: Path, batch_size: int) -> None:
    run(nano, tmp_path / "run", replace(OPTIONS, batch_size=batch_size))
    assert (tmp_path / "run" / RESULTS).read_bytes() == (whole / RESULTS).read_bytes()


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_the_batch_size_changes_no_answer_of_the_released_architectures(size: str, tmp_path: Path) -> None:
    vlm = load(CHECKPOINTS / size, device="cpu", dtype="float32")
    for batch_size in (1, 16):
        run(vlm, tmp_path / str(batch_size), replace(OPTIONS, batch_size=batch_size, max_new_tokens=4))
    one, many = (read_results(tmp_path / name) for name in ("1", "16"))
    assert one == many
    assert len({result.answer for result in one}) > 1


def test_a_killed_run_goes_on_after_its_last_whole_line(nano: VLM, tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lines = (whole / RESULTS).read_bytes().splitlines(keepends=True)
    (folder / "run.json").write_bytes((whole / "run.json").read_bytes())
    # Killed while the third line was written.
    (folder / "results.0-of-1.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:20])
    assert [result.id for result in read_parts(folder).values()] == [json.loads(line)["id"] for line in lines[:2]]
    asked: list[str] = []

    def counting(vlm: VLM, protocol: Protocol, items: Iterator[Item], *, batch_size: int) -> Iterator[Result]:
        for result in answers(vlm, protocol, items, batch_size=batch_size):
            asked.append(result.id)
            yield result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vl2.eval.run_task.answers", counting)
        run(nano, folder)
    assert sorted(asked) == sorted(json.loads(line)["id"] for line in lines[2:])
    assert (folder / RESULTS).read_bytes() == (whole / RESULTS).read_bytes()
    assert not list(folder.glob("results.*-of-*"))


def test_results_of_older_runs_had_no_measures(whole: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (whole / RESULTS).read_text(encoding="utf-8").splitlines()]
    assert all(line.pop("measures") == {} for line in lines)
    (tmp_path / RESULTS).write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    assert read_results(tmp_path) == read_results(whole)


def test_the_measures_of_an_answer_are_kept_and_a_refused_item_counts_as_nothing(nano: VLM) -> None:
    protocol = replace(
        undecided_task().protocols["vl2"], score=lambda item, answer: Score(value=0.5, measures={"text": 0.5})
    )
    items = [Item(id="good", question="?", gold=["x"]), Item(id="long", question="word " * 5000, gold=["x"])]
    results = list(answers(nano, protocol, items, batch_size=2))
    assert {result.id: dict(result.measures) for result in results} == {"good": {"text": 0.5}, "long": {}}
    assert mean_measure(results, "text") == 0.25
    assert mean_measure(results, "tables") is None


def test_a_finished_run_is_read_and_nothing_is_asked(whole: Path, nano: VLM) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vl2.eval.run_task.answers", lambda *_, **__: pytest.fail("asked again"))
        assert run(nano, whole) == read_results(whole)


def test_two_processes_share_the_items_and_the_first_joins_the_lines(nano: VLM, tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "run"
    # The second one is done first, and waits for nobody.
    assert len(run(nano, folder, replace(OPTIONS, rank=1, world_size=2))) == ITEMS // 2
    assert len(read_parts(folder)) == ITEMS // 2
    results = run(nano, folder, replace(OPTIONS, rank=0, world_size=2))
    assert results == read_results(whole)
    assert (folder / RESULTS).read_bytes() == (whole / RESULTS).read_bytes()


def test_another_run_in_the_same_folder_is_refused(nano: VLM, whole: Path) -> None:
    with pytest.raises(UserError, match=r"another run \(limit 18, now 5\)|another run \(data"):
        run(nano, whole, replace(OPTIONS, limit=5))
    with pytest.raises(UserError, match=r"another run \(task 'count_objects', now 'presence'\)"):
        run(nano, whole, OPTIONS, find_task("presence"))


def test_the_same_weights_with_another_image_scale_are_another_run(nano: VLM, whole: Path) -> None:
    assert read_run(whole).tiling == "paper, image scale 1.5"
    plain = replace(nano.processor, config=replace(nano.processor.config, image_scale=1.0))
    with pytest.raises(UserError, match=r"another run \(tiling 'paper, image scale 1.5', now 'paper'\)"):
        run(VLM(nano.model, plain, folder=nano.folder), whole)
    assert tiling_text(plain.tiling, 18) == "paper, up to 18 tiles", "as recorded before there was an image scale"


def test_two_items_of_one_id_are_refused() -> None:
    item = Item(id="a", question="?", gold=["x"])
    with pytest.raises(UserError, match="two items have the id a"):
        scan_items([item, item])


def test_a_result_holds_the_prompt_the_answer_and_what_was_read(whole: Path) -> None:
    first, item = read_results(whole)[0], next(limited(TASK, DataSource(), 1))
    assert first.prompt == f"<image>\n{item.question}"
    assert (first.id, first.gold) == (item.id, item.gold)
    assert 1 <= first.completion_tokens <= 3
    assert first.finish_reason in ("stop", "length")


@pytest.mark.parametrize("field", ["limit", "batch_size", "max_new_tokens"])
def test_a_number_below_one_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=f"{field} must be at least 1, got 0"):
        EvalOptions(**{field: 0})


def undecided_task(count: int = 1) -> Task:
    def read(task: Task, source: DataSource) -> Iterator[Item]:
        for number in range(count):
            yield Item(id=f"item {number}", question="What?", gold=["blue"])

    judge = JudgeRule(
        prompt=lambda item, answer: f"{item.question} {answer!r}",
        score=lambda item, reply: Score(value=float(reply == item.gold[0]), read=f"{reply} (judge)"),
    )
    protocol = Protocol(
        ask=lambda item: [user_turn(item.question, [])],
        score=lambda item, answer: Score(value=0.0, is_undecided=True),
        says="",
        max_new_tokens=2,
        judge=judge,
    )
    return Task(name="undecided", title="", layout="", read=read, protocols={"vl2": protocol}, metric=mean_score)


def test_a_judge_reads_what_the_rules_left_open_and_the_model_is_not_asked_again(nano: VLM, tmp_path: Path) -> None:
    task, options = undecided_task(), EvalOptions(quiet=True)
    (without,) = run(nano, tmp_path / "run", options, task)
    assert (without.score, without.is_undecided) == (0.0, True)
    asked: list[str] = []

    def reply(prompts: Sequence[str]) -> list[str]:
        asked.extend(prompts)
        return ["blue"] * len(prompts)

    judge = Judge(name="a model", ask=reply)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vl2.eval.run_task.answers", lambda *_, **__: pytest.fail("asked again"))
        (judged,) = run(nano, tmp_path / "run", replace(options, judge=judge), task)
    assert asked == [f"What? {without.answer!r}"]
    assert (judged.score, judged.is_undecided, judged.read) == (1.0, False, "blue (judge)")
    assert read_run(tmp_path / "run").judge == "a model"
    with pytest.raises(UserError, match=r"another run \(judge 'a model', now 'another'\)"):
        run(nano, tmp_path / "run", replace(options, judge=replace(judge, name="another")), task)


def test_what_a_judge_has_read_stays_when_it_fails_half_way(nano: VLM, tmp_path: Path) -> None:
    calls = []

    def failing(prompts: Sequence[str]) -> list[str]:
        calls.append(len(prompts))
        if len(calls) == 2:
            raise UserError("the judge gives no answer")
        return ["blue"] * len(prompts)

    task, options = undecided_task(40), EvalOptions(quiet=True, judge=Judge(name="a model", ask=failing))
    with pytest.raises(UserError, match="gives no answer"):
        run(nano, tmp_path / "run", options, task)
    assert sum(result.is_undecided for result in read_results(tmp_path / "run")) == 8
    assert all(result.score == 1 for result in run(nano, tmp_path / "run", options, task))
    assert calls == [32, 8, 8]


def test_a_judge_that_never_answers_does_not_lock_the_folder(nano: VLM, tmp_path: Path) -> None:
    def failing(prompts: Sequence[str]) -> list[str]:
        raise UserError("the judge gives no answer")

    task, options = undecided_task(), EvalOptions(quiet=True)
    with pytest.raises(UserError, match="gives no answer"):
        run(nano, tmp_path / "run", replace(options, judge=Judge(name="wrong", ask=failing)), task)
    assert read_run(tmp_path / "run").judge is None
    assert run(nano, tmp_path / "run", options, task)[0].is_undecided
    right = Judge(name="right", ask=lambda prompts: ["blue"] * len(prompts))
    (judged,) = run(nano, tmp_path / "run", replace(options, judge=right), task)
    assert (judged.score, read_run(tmp_path / "run").judge) == (1.0, "right")


def test_an_answer_without_a_reply_stays_undecided_and_the_rest_is_judged(nano: VLM, tmp_path: Path) -> None:
    def partly(prompts: Sequence[str]) -> list[str | None]:
        return [None, *["blue"] * (len(prompts) - 1)]

    task, options = undecided_task(40), EvalOptions(quiet=True, judge=Judge(name="a model", ask=partly))
    results = run(nano, tmp_path / "run", options, task)
    assert [result.id for result in results if result.is_undecided] == ["item 0", "item 32"]
    assert sum(result.score for result in results) == 38


def test_an_item_that_cannot_be_asked_counts_as_wrong_and_the_run_goes_on(nano: VLM) -> None:
    protocol = replace(undecided_task().protocols["vl2"], ask=lambda item: [user_turn(item.question, item.images)])
    items = [
        Item(id="broken", question="?", images=(b"no picture",), gold=["x"]),
        Item(id="long", question="word " * 5000, gold=["x"]),
        Item(id="good", question="?", gold=["x"]),
    ]
    found = {result.id: result for result in answers(nano, protocol, items, batch_size=2)}
    assert found["broken"].finish_reason == found["long"].finish_reason == "refused"
    assert found["good"].finish_reason in ("stop", "length")
    assert "cannot" in found["broken"].read
    assert "the context is" in found["long"].read
    assert found["broken"].score == 0


def test_a_picture_that_is_not_there_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the image of a is missing"):
        scan_items([Item(id="a", question="?", images=(tmp_path / "x.png",), gold=["x"])])


def test_the_same_pictures_in_another_folder_are_the_same_data(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        picture_file(tmp_path / name / "1.png")
        item = Item(id="a", question="?", images=(tmp_path / name / "1.png",), gold=["x"])
        digests.add(scan_items([item])[1])
    assert len(digests) == 1


def test_a_task_with_more_tiles_cuts_finer_and_a_given_number_wins(nano: VLM) -> None:
    coarser, protocol = (replace(TASK.protocols["vl2"], max_tiles=most) for most in (18, 24))
    assert apply_protocol(nano, protocol, 4).processor.cutter.most_views == 25 > nano.processor.cutter.most_views
    assert apply_protocol(nano, coarser, 4).processor.cutter.most_views == nano.processor.cutter.most_views == 21
    chosen = VLM(nano.model, nano.processor.with_tiling("paper", 4), folder=nano.folder)
    assert apply_protocol(chosen, protocol, 4).processor.max_tiles == 4
    assert apply_protocol(nano, protocol, 4).limits.max_num_seqs == 4


def test_progress_tells_the_time_left_from_the_items_of_this_call_and_the_score_of_all() -> None:
    now = [0.0]
    progress = EvalProgress("task", total=30, scores_before=[1.0] * 10, quiet=True, clock=lambda: now[0])
    now[0] = 20.0
    progress.step([1.0] * 5 + [0.0] * 5)
    assert progress.line() == "task: 20 of 30, score 75.0, 20 s left"
