"""The life of a run: the same curve whatever kills it, an end for every signal, nothing lost when a disk is full."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import vl2
from tests.model.configs import small_model
from tests.train.forks import Fork, wait_for_steps
from tests.train.toy import make_toy_data, make_toy_model, run_toy, text_record, toy_recipe, toy_stage
from tests.train.two_ranks import TwoRanks
from vl2.data.loader import LoadedStep, Loader
from vl2.data.pack_plan import PackEntry
from vl2.data.record import Message, Part, Record, StoredImage
from vl2.data.store import write_records
from vl2.errors import UserError
from vl2.model import VL2
from vl2.process.processor import Processor
from vl2.process.sample import Sample
from vl2.train.adapter_options import AdapterOptions
from vl2.train.checkpoint import checkpoint_steps, newest_checkpoint
from vl2.train.evaluation import Benchmark, HeldOut
from vl2.train.export import export
from vl2.train.loss_spike import LossSpikeOptions
from vl2.train.metric_outputs import Outputs, TrainProgress
from vl2.train.metrics import MACHINE_DEPENDENT, read_metrics
from vl2.train.ranks import Ranks
from vl2.train.recipe import Compute, EngineOptions, EvaluationTask, Recipe, read_recipe
from vl2.train.run import Run, train
from vl2.train.tensor_files import TensorReader, whole_block


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("toy")
    return make_toy_model(folder / "model"), make_toy_data(folder / "data")


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test here."""


def replace_compute(recipe: Recipe, compute: Compute) -> Recipe:
    return dataclasses.replace(recipe, engine=dataclasses.replace(recipe.engine, compute=compute))


def curve(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run without what the machine's speed says."""
    return [{k: v for k, v in line.items() if k not in MACHINE_DEPENDENT} for line in read_metrics(folder)]


def start(recipe: Recipe, *arguments: str, first: Callable[[], None] | None = None, before: str = "") -> Fork:
    """Train a recipe in a process of its own."""
    folder = Path(recipe.run.folder)
    path = folder.with_suffix(".toml")
    path.write_text(recipe.to_toml(), encoding="utf-8")
    return Fork(["train", str(path), *arguments], folder.with_suffix(".txt"), first=first, before=before)


def test_a_run_that_is_killed_at_any_moment_goes_on_with_the_same_numbers_bit_for_bit(
    toy: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = toy_recipe(*toy, tmp_path / "whole", toy_stage(num_steps=9))
    run_toy(recipe)
    rng = random.Random(os.getpid())
    killed = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, folder=str(tmp_path / "killed")))
    num_kills, steps = 0, sorted(rng.sample(range(1, 9), 2))
    for step in steps:
        life = start(killed, "--resume")
        wait_for_steps(tmp_path / "killed", step, [life])
        time.sleep(rng.uniform(0, 0.1))
        num_kills += life.kill()[0] == -signal.SIGKILL
    code, said = start(killed, "--resume").end()
    assert code == 0, said
    assert num_kills >= 1, f"killed after steps {steps}"
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole"), f"killed after steps {steps}"
    weights = [(tmp_path / name / "export" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_the_run_with_a_checkpoint_of_the_step_in_hand(
    toy: tuple[Path, Path], tmp_path: Path, number: int, code: int, word: str
) -> None:
    life = start(toy_recipe(*toy, tmp_path / "run", toy_stage(num_steps=5000), save_every_steps=4000))
    wait_for_steps(tmp_path / "run", 2, [life])
    life.send_signal(number)
    ended, said = life.end()
    steps = [line["step"] for line in curve(tmp_path / "run")]
    assert (ended, checkpoint_steps(tmp_path / "run")) == (code, [steps[-1]]), said
    assert said.strip().splitlines()[-1].startswith(f"vl2: {word} at step {steps[-1]} of 5,000: saved ")


def limit_file_size() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))


def test_a_disk_that_is_full_ends_the_run_in_one_line_and_the_last_checkpoint_remains(
    toy: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = toy_recipe(*toy, tmp_path / "run", toy_stage(num_steps=2), export=False)
    run_toy(recipe)
    longer = dataclasses.replace(recipe, stage=toy_stage(num_steps=8))
    before = (newest_checkpoint(tmp_path / "run") or Path()).joinpath("rank-00000.safetensors").read_bytes()
    code, said = start(longer, "--resume", first=limit_file_size).end()
    assert code == 1
    last = said.strip().splitlines()[-1]
    assert last.startswith("vl2: cannot write the checkpoint of step 4 in ")
    assert "File too large" in last
    assert last.endswith(f"the last complete one is {tmp_path / 'run' / 'checkpoints' / 'step-00000002'}")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000002"]
    assert (tmp_path / "run/checkpoints/step-00000002/rank-00000.safetensors").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(toy: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot write to the run folder .*: Not a directory$"):
        run_toy(toy_recipe(*toy, tmp_path / "file" / "run"))


def test_a_run_is_not_started_over_another(toy: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = toy_recipe(*toy, tmp_path / "run", toy_stage(num_steps=1), export=False)
    run_toy(recipe)
    with pytest.raises(UserError, match=r"already has a run: resume it with --resume"):
        run_toy(recipe)
    again = run_toy(recipe, resume=True)
    assert (again.ended, again.step, len(curve(tmp_path / "run"))) == ("finished", 1, 1)


def test_the_time_limit_ends_a_run_and_resuming_finishes_it(toy: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = toy_recipe(*toy, tmp_path / "run", toy_stage(num_steps=3), minutes=1e-9, save_every_steps=100)
    assert [run_toy(recipe, resume=True).step for _ in range(2)] == [1, 2]
    last = run_toy(recipe, resume=True)
    assert (last.ended, last.step, [line["step"] for line in curve(tmp_path / "run")]) == ("finished", 3, [1, 2, 3])


def poison(monkeypatch: pytest.MonkeyPatch, is_poisoned: Callable[[int], bool]) -> None:
    """Make the pictures of some steps, counted from 1, be no numbers."""
    original = Loader.__iter__

    def poisoned(self: Loader) -> Iterator[LoadedStep]:
        for step in original(self):
            if is_poisoned(step.number + 1):
                for pack in step.packs:
                    pack.tiles.fill_(float("nan"))
            yield step

    monkeypatch.setattr(Loader, "__iter__", poisoned)


def test_a_poisoned_step_is_discarded_and_leaves_no_trace_in_the_weights(
    toy: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda step: step == 3)
    run_toy(toy_recipe(*toy, tmp_path / "run", toy_stage(num_steps=4)))
    lines = curve(tmp_path / "run")
    assert [line["discarded"] for line in lines] == ["", "", "loss is nan", ""]
    assert [line["num_discarded"] for line in lines] == [0, 0, 1, 1]
    assert [line["loss"] is None for line in lines] == [False, False, True, False]
    model = vl2.load(tmp_path / "run" / "export").model
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_a_run_that_only_discards_gives_up_and_names_the_last_checkpoint(
    toy: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda step: step > 2)
    recipe = toy_recipe(*toy, tmp_path / "run", toy_stage(num_steps=50), save_every_steps=2)
    recipe = dataclasses.replace(recipe, guard=LossSpikeOptions(most_discarded=3))
    with pytest.raises(
        UserError, match=r"stopped at step 5: 3 steps in a row .* loss is nan; the last checkpoint is .*step-00000004"
    ):
        run_toy(recipe)


def test_a_run_whose_data_go_away_changes_nothing_more_and_gives_up(
    toy: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_read, original = 0, Loader._encode_checked

    def sample(self: Loader, record: Record, entry: PackEntry) -> Sample:
        nonlocal num_read
        num_read += 1
        if num_read > 40:
            raise OSError(5, "Input/output error")
        return original(self, record, entry)

    monkeypatch.setattr(Loader, "_encode_checked", sample)
    recipe = toy_recipe(*toy, tmp_path / "run", toy_stage(num_steps=50))
    recipe = dataclasses.replace(recipe, guard=LossSpikeOptions(most_discarded=3))
    with pytest.raises(UserError, match=r": 3 steps in a row .* its data held no token to train; the last checkpoint"):
        run_toy(recipe)
    lines = curve(tmp_path / "run")
    assert [line["trained_tokens"] for line in lines[-3:]] == [0, 0, 0]
    assert [bool(line["discarded"]) for line in lines] == [not line["trained_tokens"] for line in lines]
    assert all(line["lost_records"] > 0 for line in lines[-3:])
    assert lines[0]["lost_records"] == 0


def test_an_adapter_in_frozen_parts_is_refused(toy: tuple[Path, Path], tmp_path: Path) -> None:
    stage = toy_stage(name="alignment", frozen=("language",), expert_bias_step=0.0)
    recipe = dataclasses.replace(
        toy_recipe(*toy, tmp_path / "run", stage), adapter=AdapterOptions(method="lora", targets=("attention",))
    )
    with pytest.raises(UserError, match=r"^stage alignment: nothing is left to train, because its adapter is in parts"):
        run_toy(recipe)


def test_three_stages_follow_each_other_and_the_last_export_answers(toy: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = toy
    outcomes = []
    for name, changes in (
        ("alignment", {"frozen": ("language",), "is_packed": False, "expert_bias_step": 0.0, "batch_size": 3}),
        ("pretraining", {"schedule": "step"}),
        ("fine-tuning", {"schedule": "constant", "mask_prompt": True}),
    ):
        stage = toy_stage(name=name, num_steps=3, **changes)
        recipe = toy_recipe(model, data, tmp_path / name, stage, minutes=1e-9)
        outcomes += [run_toy(recipe, resume=True) for _ in range(3)]  # each life takes one step
        model = tmp_path / name / "export"
    assert [outcome.ended for outcome in outcomes] == ["out of time", "out of time", "finished"] * 3
    before, after = (vl2.load(tmp_path / name / "export").model.state_dict() for name in ("alignment", "pretraining"))
    assert not torch.equal(before["language.lm_head.weight"], after["language.lm_head.weight"])
    start = vl2.load(tmp_path / "alignment" / "export")
    assert start.model.dtype == torch.float32
    reply = vl2.load(tmp_path / "fine-tuning" / "export").chat("What is it?", max_new_tokens=4)
    assert reply.usage.completion_tokens >= 1
    resolved = read_recipe((newest_checkpoint(tmp_path / "fine-tuning") or Path()) / "recipe.toml")
    assert resolved == recipe


def test_the_float32_export_of_a_bfloat16_run_has_the_masters_and_another_their_rounded_copies(
    toy: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = toy_recipe(*toy, tmp_path / "run", toy_stage(num_steps=2), export=False)
    checkpoint = run_toy(replace_compute(recipe, "bfloat16")).checkpoint
    found = {}
    for dtype in ("float32", "bfloat16"):
        found[dtype] = vl2.load(export(checkpoint, tmp_path / dtype, dtype=dtype), dtype=dtype).model.state_dict()
    num_masters, reader = 0, TensorReader(checkpoint)
    for path in reader.unread():
        name = path.removeprefix("train_step/").removesuffix("/master")
        if path == f"train_step/{name}/master":
            master = torch.empty(found["float32"][name].shape)
            reader.read(path, whole_block(master))
            assert torch.equal(found["float32"][name], master), name
            is_router = found["bfloat16"][name].dtype == torch.float32
            assert torch.equal(found["bfloat16"][name], master if is_router else master.bfloat16()), name
            num_masters += 1
    assert num_masters > 10


def test_evaluations_are_made_when_due_and_written_beside_the_steps(toy: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "held_out.jsonl"
    records: list[Record] = [text_record(i) for i in range(3)]
    write_records(iter(records), str(path))
    task = EvaluationTask(name="held", path=str(path), num_records=2, max_new_tokens=2)
    recipe = toy_recipe(*toy, tmp_path / "run", toy_stage(num_steps=3), evaluate_every_steps=2, tasks=(task,))
    run_toy(recipe)
    found = [line for line in curve(tmp_path / "run") if "evaluation" in line]
    assert found == [{"step": step, "evaluation": {"held/exact_match": 0.0}} for step in (2, 3)]
    without = toy_recipe(*toy, tmp_path / "without", toy_stage(num_steps=3))
    run_toy(without)
    steps = [line for line in curve(tmp_path / "run") if "loss" in line]
    assert steps == curve(tmp_path / "without"), "an evaluation must change nothing"
    opened, processor = HeldOut.open(task), Processor.from_folder(toy[0])
    assert len(opened._records) == 2
    opened.check(processor, 512)
    with pytest.raises(UserError, match=r"^the evaluation held cannot ask text-0: the prompt of text-0 has \d+ tokens"):
        opened.check(processor, 4)


def evaluate_long(ranks: Ranks, timeout_s: float, long_s: float) -> list[str]:
    """Evaluate as a run does whose other parts are not needed; return what was said."""

    def sleep(model: VL2, processor: Processor, step: int) -> dict[str, float]:
        time.sleep(long_s)
        return {"held/exact_match": 0.5}

    run, said = Run.__new__(Run), list[str]()
    recipe = toy_recipe(Path("model"), Path("data"), Path("run"))
    run.recipe = dataclasses.replace(recipe, engine=EngineOptions(timeout_s=timeout_s))
    run.ranks, run.model, run.step, run._watch = ranks, small_model(), 3, None
    run.processor = cast(Processor, None)
    run._evaluations = [sleep]
    outputs = SimpleNamespace(evaluation=lambda step, scores: None)
    run._evaluate(cast(Outputs, outputs), cast(TrainProgress, SimpleNamespace(say=said.append)))
    return said


def test_an_evaluation_may_take_longer_than_ranks_wait_for_one_another() -> None:
    two = TwoRanks(collective_s=1.0)
    try:
        assert two.run(evaluate_long, 1.0, 2.5) == [["step 3  held/exact_match 0.500"], []]
    finally:
        two.close()


def test_a_record_that_cannot_be_asked_is_refused_before_the_first_step(toy: tuple[Path, Path], tmp_path: Path) -> None:
    page = Record(
        id="page",
        source="test",
        category="text",
        language="en",
        licence="CC0-1.0",
        messages=(Message(role="document", parts=(Part(text="A page."),)),),
    )
    broken = Record(
        id="broken",
        source="test",
        category="vqa",
        language="en",
        licence="CC0-1.0",
        messages=(
            Message(role="user", parts=(Part(image=0), Part(text="What?"))),
            Message(role="assistant", parts=(Part(text="This."),)),
        ),
        images=(StoredImage(data=b"no picture", width=8, height=8),),
    )
    for record, says in (
        (page, "page: its last message must be the assistant's, got a document"),
        (broken, "broken: "),
    ):
        path = tmp_path / f"{record.id}.jsonl"
        write_records(iter([record]), str(path))
        task = EvaluationTask(name="held", path=str(path))
        with pytest.raises(UserError, match=rf"^the evaluation held cannot ask {says}"):
            run_toy(toy_recipe(*toy, tmp_path / record.id, tasks=(task,)))
        assert not (tmp_path / record.id / "metrics.jsonl").exists()


@pytest.mark.parametrize(("fails_at", "kept"), [(1, [1]), (3, [1, 2, 3])])
def test_an_evaluation_that_fails_costs_no_step_and_a_resumed_run_goes_on_after_it(
    toy: tuple[Path, Path], tmp_path: Path, fails_at: int, kept: list[int]
) -> None:
    def evaluate(model: VL2, processor: Processor, step: int) -> dict[str, float]:
        if step == fails_at:
            raise MemoryError
        return {}

    recipe = toy_recipe(*toy, tmp_path / "run", toy_stage(num_steps=3), save_every_steps=100, evaluate_every_steps=1)
    with pytest.raises(MemoryError):
        train(recipe, quiet=True, evaluations=[evaluate])
    until = time.monotonic() + 60
    while checkpoint_steps(tmp_path / "run") != kept and time.monotonic() < until:  # a thread writes it
        time.sleep(0.01)
    assert checkpoint_steps(tmp_path / "run") == kept
    resumed = train(recipe, resume=True, quiet=True, evaluations=[])
    assert (resumed.ended, resumed.step) == ("finished", 3)
    assert [line["step"] for line in curve(tmp_path / "run") if "loss" in line] == [1, 2, 3]


KILLS_ITSELF = """
import os, signal, time
from pathlib import Path
import vl2.train.run
from vl2.train.checkpoint import checkpoint_steps

train, until = vl2.train.run.train, time.monotonic() + 60

def train_and_evaluate(recipe, *, resume, quiet):
    def evaluate(model, processor, step):
        while step not in checkpoint_steps(Path(recipe.run.folder)) and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    return train(recipe, resume=resume, quiet=quiet, evaluations=[evaluate])

vl2.train.run.train = train_and_evaluate
"""


def test_a_run_that_is_killed_in_an_evaluation_goes_on_after_its_step(
    toy: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = toy_recipe(*toy, tmp_path / "run", toy_stage(num_steps=3), save_every_steps=100, evaluate_every_steps=2)
    code, said = start(recipe, before=KILLS_ITSELF).end()
    assert code == -signal.SIGKILL, said
    train(recipe, resume=True, evaluations=[])
    assert "resumed from step 2 of 3" in capsys.readouterr().err
    assert [line["step"] for line in curve(tmp_path / "run")] == [1, 2, 3]


def test_a_task_of_the_benchmarks_watches_a_run_as_parts_of_one(toy: tuple[Path, Path], tmp_path: Path) -> None:
    task = EvaluationTask(name="presence", num_records=2, max_new_tokens=2)
    recipe = toy_recipe(*toy, tmp_path / "run", toy_stage(num_steps=2), evaluate_every_steps=2, tasks=(task,))
    run_toy(recipe)
    found = [line for line in curve(tmp_path / "run") if "evaluation" in line]
    assert found == [{"step": 2, "evaluation": {"presence/accuracy": 0.0}}]
    assert Benchmark(task)._scale == 0.01


def test_a_task_that_does_not_exist_or_is_asked_for_twice_over_is_refused(
    toy: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = toy_recipe(*toy, tmp_path / "run", tasks=(EvaluationTask(name="count_object"),))
    with pytest.raises(UserError, match=r"^there is no task count_object: did you mean count_objects\?$"):
        run_toy(recipe)
    with pytest.raises(UserError, match=r"run\.tasks x: give path for records, or data for a task of vl2 eval"):
        EvaluationTask(name="x", path="a.jsonl", data="b")
    with pytest.raises(UserError, match=r"run\.tasks x: num_records and max_new_tokens must be at least 1"):
        EvaluationTask(name="x", path="a.jsonl", num_records=0)


def test_a_record_that_cannot_be_read_is_left_out_and_the_run_goes_on(
    tmp_path: Path, toy: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_toy_data(tmp_path / "data", 8)
    lines = (data / "text.jsonl").read_text().splitlines()
    values = json.loads(lines[0])
    values["messages"][0]["content"] = [{"type": "text", "text": ""}]
    (data / "text.jsonl").write_text("\n".join(["{broken", *lines[1:]]) + "\n")
    train(toy_recipe(toy[0], data, tmp_path / "run", toy_stage(num_steps=2), export=False))
    assert "1 records cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_a_cpu_without_bfloat16_is_told_of_the_faster_type(
    tmp_path: Path,
    toy: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    has_bfloat16: bool,
) -> None:
    from vl2.train import flops

    monkeypatch.setattr(flops, "has_bfloat16_products", lambda: has_bfloat16)
    recipe = toy_recipe(*toy, tmp_path / "run", toy_stage(num_steps=1), export=False)
    train(replace_compute(recipe, "bfloat16"))
    assert ("no instructions for bfloat16" in capsys.readouterr().err) is not has_bfloat16
