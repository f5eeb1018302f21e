"""From a person's folder to a trained, scored and written model, on the three structures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.datasets.own_folder import SIDE, color_rows, draw_images, write_csv, write_lines
from tests.lora.adapted import base_model, batch_of, disturb, tree_bytes
from tests.reference import CHECKPOINTS, SIZES
from vl2.checkpoint import load_model
from vl2.config import preset
from vl2.data.record import Message, Part, Record
from vl2.data.store import write_records
from vl2.errors import UserError
from vl2.infer.vlm import load
from vl2.lora.attach import is_adapted
from vl2.lora.peft_files import save_adapter
from vl2.process.processor import Processor
from vl2.train import checkpoint
from vl2.train.adapter import adapt
from vl2.train.adapter_options import AdapterOptions
from vl2.train.export import export
from vl2.train.finetune import finetuning
from vl2.train.finetune.finetuning import TuningPlan, TuningResult, finetune, plan
from vl2.train.finetune.options import TuningOptions, default_epochs, usual_tiles
from vl2.train.finetune.score import LOSS
from vl2.train.finetune.split_data import default_held_out
from vl2.train.prepare import find_model, make_model, make_plan, open_stores
from vl2.train.ranks import ONE
from vl2.train.recipe import ModelOptions
from vl2.train.size import trained_size
from vl2.train.stage import STAGES, Stage

LORA = AdapterOptions(method="lora", rank=4, alpha=8.0)


def stage_of(size: str, adapter: AdapterOptions) -> Stage:
    options = TuningOptions(model=size, adapter=adapter)
    return options.stage(preset(size), seq_len=4096, batch_size=4, num_steps=10, most_tiles=16)


def options(size: str, **values: Any) -> TuningOptions:
    given = {"adapter": LORA, "learning_rate": 5e-3, "steps": 4, "batch_size": 4, "device": "cpu", **values}
    return TuningOptions(model=str(CHECKPOINTS / size), **given)


def tune(
    data: Path, out: Path, chosen: TuningOptions, *, said: list[str] | None = None, resume: bool = False, **rest: Any
) -> tuple[TuningPlan, TuningResult]:
    planned = plan(
        str(data),
        out,
        chosen,
        num_held_out=rest.pop("num_held_out", 2),
        resume=resume,
        say=(said if said is not None else []).append,
    )
    return planned, finetune(planned, resume=resume, max_new_tokens=4, quiet=True, **rest)


@pytest.mark.parametrize(("name", "most"), [("tiny", 16), ("nano", 83), ("deepseek-ocr", 16)])
def test_a_pack_has_as_many_pixels_of_any_tile(name: str, most: int) -> None:
    assert usual_tiles(preset(name)) == most


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry["loss"] for line in lines if "loss" in (entry := json.loads(line))]


def watch_loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, Any]]:
    """Return a list that gets name, adapter and device of every model that is loaded whole."""
    opened: list[tuple[str, Any, Any]] = []

    def watched(name: Any, *, adapter: Any = None, device: Any = None) -> Any:
        opened.append((str(name), adapter, device))
        return load(name, adapter=adapter, device=device)

    monkeypatch.setattr(finetuning, "load", watched)
    return opened


@pytest.fixture
def colors(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "questions.csv", color_rows(tmp_path, 10))


@pytest.mark.parametrize("size", SIZES)
def test_an_adapter_learns_is_scored_and_is_what_load_takes(size: str, colors: Path, tmp_path: Path) -> None:
    _, tuned = tune(colors, tmp_path / "out", options(size), merge=True)
    assert tuned.ended == "finished"
    assert tuned.before is not None
    assert tuned.after is not None
    assert tuned.after.loss < tuned.before.loss
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0]
    adapted = load(CHECKPOINTS / size, adapter=tmp_path / "out" / "adapter", device="cpu").model
    merged = load(tmp_path / "out" / "merged", device="cpu").model
    assert not is_adapted(adapted)
    theirs = merged.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in adapted.state_dict().items())
    assert not torch.equal(adapted.language.model.layers[1].self_attn.o_proj.weight,
                           base_model(size).language.model.layers[1].self_attn.o_proj.weight)  # fmt: skip
    assert "wanted: " in (tmp_path / "out" / "answers.md").read_text(encoding="utf-8")
    assert (
        json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["after"]["loss"] < tuned.before.loss
    )
    assert tree_bytes(tmp_path / "out" / "checkpoints") < tree_bytes(CHECKPOINTS / size)


def test_the_dropout_of_an_adapter_is_at_work_in_a_model_that_has_weights() -> None:
    files = find_model(ModelOptions(name=str(CHECKPOINTS / "tiny")))
    model = make_model(files, 0, is_first=True, is_filled_later=False)
    adapt(model, dataclasses.replace(LORA, dropout=0.5), 0, torch.float32)
    disturb(model)
    batch = batch_of("tiny", "text")
    assert not torch.equal(model(batch).logits, model(batch).logits)
    model.eval()
    assert torch.equal(model(batch).logits, model(batch).logits)


def test_a_stopped_run_goes_on_to_the_same_adapter(
    colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on every rank but the first, whose generators are in no checkpoint.
    monkeypatch.setattr(checkpoint, "set_random_state", lambda state: torch.manual_seed(99))
    chosen = options("base", adapter=dataclasses.replace(LORA, dropout=0.3))
    tune(colors, tmp_path / "whole", chosen)
    _, stopped = tune(colors, tmp_path / "parts", dataclasses.replace(chosen, minutes=1e-9))
    assert (stopped.ended, stopped.step) == ("out of time", 1)
    assert not (tmp_path / "parts" / "adapter").exists()
    colors.write_text("image,question,answer\n", encoding="utf-8")  # the run has its own copy
    _, resumed = tune(colors, tmp_path / "parts", chosen, resume=True)
    assert resumed.ended == "finished"
    assert [step for step, _ in resumed.on_the_way] == [1, 2, 3, 4]
    files = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_the_loss_on_held_out_records_is_told_on_the_way_and_ends_as_the_score_after(
    colors: Path, tmp_path: Path
) -> None:
    _, tuned = tune(colors, tmp_path / "out", options("tiny", steps=8, stops_early=False))
    steps, held_out = zip(*tuned.on_the_way, strict=True)
    assert steps == (1, 2, 3, 4, 5, 6, 7, 8)
    assert tuned.after is not None
    assert tuned.best_step == steps[held_out.index(min(held_out))]
    assert min(held_out) == pytest.approx(tuned.after.loss, rel=1e-3)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [one["loss"] for one in report["on_the_way"]] == list(held_out)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["evaluation"]["held-out/loss"] for line in lines if "evaluation" in line] == list(held_out)


class ScriptedLoss:
    """Stands in for the held-out loss."""

    values: tuple[float, ...] = ()

    def __init__(self, records: Any) -> None:
        pass

    def __call__(self, model: Any, processor: Any, step: int) -> dict[str, float]:
        return {LOSS: self.values[step - 1]}


@pytest.mark.parametrize("method", ["lora", "none"])
def test_a_run_stops_when_the_held_out_loss_no_longer_falls_and_keeps_the_best_weights(
    method: Any, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "HeldOutLoss", ScriptedLoss)
    monkeypatch.setattr(ScriptedLoss, "values", (5.0, 2.0, 3.0, 4.0, 3.5, 1.0, 0.5, 0.4))
    adapter = LORA if method == "lora" else AdapterOptions()
    chosen = options("tiny", steps=8, adapter=adapter, learning_rate=1e-3)
    _, tuned = tune(colors, tmp_path / "out", chosen)
    assert (tuned.ended, tuned.step, tuned.best_step, tuned.is_unfinished) == ("finished", 5, 2, False)
    assert tuned.trained is not None
    best = tmp_path / "out" / "checkpoints" / "step-00000002"
    name = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    expected, kept = load_file(export(best, tmp_path / "best") / name), load_file(tuned.trained / name)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in expected.items())
    last = load_file(export(tmp_path / "out", tmp_path / "last") / name)
    assert not all(torch.equal(tensor, kept[name]) for name, tensor in last.items())


def test_a_run_that_is_stopped_after_every_step_ends_early_all_the_same(
    colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "HeldOutLoss", ScriptedLoss)
    monkeypatch.setattr(ScriptedLoss, "values", (5.0, 2.0, 3.0, 4.0, 3.5, 1.0))
    chosen = options("tiny", steps=6, adapter=LORA, learning_rate=1e-3)
    _, tuned = tune(colors, tmp_path / "out", chosen)
    stopped = dataclasses.replace(chosen, minutes=1e-9)
    _, part = tune(colors, tmp_path / "parts", stopped)
    while part.ended != "finished":
        _, part = tune(colors, tmp_path / "parts", stopped, resume=True)
    assert (part.step, part.best_step, part.on_the_way) == (5, 2, tuned.on_the_way)
    assert part.trained is not None
    assert tuned.trained is not None
    name = "adapter_model.safetensors"
    assert (part.trained / name).read_bytes() == (tuned.trained / name).read_bytes()

    _, whole = tune(colors, tmp_path / "whole", dataclasses.replace(chosen, stops_early=False))
    assert (whole.step, whole.best_step, whole.is_unfinished) == (6, 6, True)


def test_a_small_set_is_seen_often_and_a_large_one_little_more_than_once() -> None:
    assert [round(default_epochs(count), 2) for count in (11, 54, 1000, 100_000)] == [30, 30, 4, 1.03]
    assert [default_held_out(count) for count in (1, 3, 4, 12, 60, 200, 10_000)] == [0, 0, 1, 3, 8, 20, 64]


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_checkpoint_of_an_adapter_is_exported_as_the_run_writes_it(method: Any, colors: Path, tmp_path: Path) -> None:
    chosen = options("small", steps=2, adapter=dataclasses.replace(LORA, method=method))
    _, tuned = tune(colors, tmp_path / "out", chosen, num_held_out=0)
    assert tuned.on_the_way == ()
    export(tmp_path / "out", tmp_path / "exported")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "exported" / name).read_bytes() == (tmp_path / "out" / "adapter" / name).read_bytes()
    with pytest.raises(UserError, match="already exists"):
        export(tmp_path / "out", tmp_path / "exported")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_over_quantized_weights_the_adapter_learns_too(
    kind: Any, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = watch_loads(monkeypatch)
    adapter = dataclasses.replace(LORA, method="qlora", base=kind)
    planned, tuned = tune(colors, tmp_path / "out", options("small", adapter=adapter))
    assert tuned.before is not None
    assert tuned.after is not None
    assert tuned.after.loss < tuned.before.loss
    assert opened == [], "the plain weights may not fit on the device"
    plain = plan(str(colors), tmp_path / "plain", options("small"), say=print)
    assert planned.size.weight_bytes < plain.size.weight_bytes
    assert planned.size.num_trained == plain.size.num_trained


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_model_is_loaded_only_where_it_is_scored_or_merged(
    method: Any, colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = watch_loads(monkeypatch)
    chosen = options("small", steps=1, adapter=dataclasses.replace(LORA, method=method))
    tune(colors, tmp_path / "out", chosen, num_held_out=0)
    assert opened == []
    _, tuned = tune(colors, tmp_path / "merged", chosen, num_held_out=0, merge=True)
    assert opened == [(str(CHECKPOINTS / "small"), tmp_path / "merged" / "adapter", "cpu")]
    assert tuned.merged == tmp_path / "merged" / "merged"


def test_all_weights_train_but_for_the_frozen_parts(
    colors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = watch_loads(monkeypatch)
    chosen = options("tiny", adapter=AdapterOptions(), frozen=("vision",), rates={"projector": 0.5}, learning_rate=1e-3)
    _, tuned = tune(colors, tmp_path / "out", chosen)
    assert tuned.trained == tmp_path / "out" / "tuned"
    assert opened == [(str(CHECKPOINTS / "tiny"), None, "cpu"), (str(tuned.trained), None, "cpu")]
    before = load_model(CHECKPOINTS / "tiny").state_dict()
    moved = {name for name, t in load_model(tuned.trained).state_dict().items() if not torch.equal(t, before[name])}
    assert not [name for name in moved if name.startswith("vision.")]
    assert {name.split(".")[0] for name in moved} >= {"projector", "language", "image_newline"}


def test_several_images_and_boxes_are_trained_on_and_scored(tmp_path: Path) -> None:
    drawn = draw_images(tmp_path, 6)
    rows: list[dict[str, Any]] = [
        {"image": name, "boxes": [{"label": f"{color} square", "box": box}]} for name, color, box in drawn
    ]
    rows += [
        {
            "images": [drawn[i][0], drawn[i + 1][0], drawn[i + 2][0]],
            "question": "Where is the square of <image> in <image> and <image>?",
            "answer": "There: {box:0}",
            "boxes": [{"label": "square", "box": drawn[i + 1][2], "image": 1}],
        }
        for i in range(3)
    ]
    planned, tuned = tune(write_lines(tmp_path / "boxes.jsonl", rows), tmp_path / "out", options("base"))
    assert planned.data.num_train + planned.data.num_held_out == 9
    assert set(planned.data.tokens) == {"grounding", "grounded_conversation"}
    assert tuned.before is not None
    assert tuned.before.box_accuracy is not None


def test_bad_records_are_named_and_left_out_and_nothing_starts_without_good_ones(colors: Path, tmp_path: Path) -> None:
    text = colors.read_text(encoding="utf-8")
    colors.write_text(text + "images/none.png,What?,x\nimages/1.png,What?,\n", encoding="utf-8")
    said: list[str] = []
    planned = plan(str(colors), tmp_path / "out", options("base"), say=said.append)
    assert planned.data.num_bad == 2
    assert any("line 12" in line and "none.png is not there" in line for line in said)
    assert "2 left out" in planned.lines()[0]
    bad = write_csv(tmp_path / "bad.csv", [{"image": "images/none.png", "question": "What?", "answer": "x"}])
    with pytest.raises(UserError, match=r"nothing in .* can be trained on: 1 records are bad"):
        plan(str(bad), tmp_path / "other", options("base"), say=said.append)
    assert not list((tmp_path / "other").iterdir())


def test_records_of_one_image_are_held_out_together(tmp_path: Path) -> None:
    rows = color_rows(tmp_path, 5)
    rows = [{**row, "question": question} for row in rows for question in ("Colour?", "What colour?", "Which one?")]
    planned = plan(
        str(write_csv(tmp_path / "rows.csv", rows)), tmp_path / "out", options("base"), num_held_out=2, say=print
    )
    assert (planned.data.num_train, planned.data.num_held_out) == (12, 3)


def test_documents_are_trained_on_and_never_held_out(tmp_path: Path) -> None:
    def record(number: int, *messages: Message) -> Record:
        return Record(
            id=f"{number}", source="test", category="text", language="en", licence="CC0-1.0", messages=messages
        )

    pages = [record(i, Message(role="document", parts=(Part(text=f"Page {i}."),))) for i in range(6)]
    asked = Message(role="user", parts=(Part(text="Which?"),))
    answers = [record(i, asked, Message(role="assistant", parts=(Part(text=f"{i}"),))) for i in range(6, 9)]
    write_records(iter([*pages, *answers]), str(tmp_path / "records.jsonl"))
    planned, tuned = tune(tmp_path / "records.jsonl", tmp_path / "out", options("base", steps=1), num_held_out=9)
    assert (planned.data.num_train, planned.data.num_held_out) == (6, 3)
    assert tuned.after is not None


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("epochs", [0.5, 1.0, 3.0])
def test_the_epochs_that_are_asked_for_are_trained(epochs: float, batch_size: int, tmp_path: Path) -> None:
    rows = color_rows(tmp_path, 12)
    for number, row in enumerate(rows):
        row["answer"] = " ".join(["word"] * (400 if number == 5 else 5 + 7 * number))
    chosen = options("base", steps=None, epochs=epochs, batch_size=batch_size)
    planned = plan(str(write_csv(tmp_path / "rows.csv", rows)), tmp_path / "out", chosen, num_held_out=0, say=print)
    processor = Processor.from_folder(CHECKPOINTS / "base")
    stores = open_stores(planned.recipe)
    steps = make_plan(planned.recipe, stores, processor, folder=None, ranks=ONE, say=print).steps()
    tokens = [
        sum(pack.num_tokens for pack in step.packs) for _, step in zip(range(planned.num_steps), steps, strict=False)
    ]
    one_step = max(tokens)
    assert abs(sum(tokens) - epochs * sum(planned.data.tokens.values())) <= one_step
    shown = sum(tokens) / len(tokens) / planned.data.mean_tokens
    assert f"steps    {planned.num_steps} of about {shown:.0f} records" in planned.lines()[4] or epochs < 1


def test_numbers_that_look_like_boxes_are_warned_of(tmp_path: Path) -> None:
    rows = color_rows(tmp_path, 3)
    rows[0]["answer"] = f"at [0, 0, {SIDE}, {SIDE}]"
    planned = plan(str(write_csv(tmp_path / "rows.csv", rows)), tmp_path / "out", options("base"), say=print)
    assert planned.data.num_bare_boxes == 1
    assert "without <|ref|>" in planned.lines()[-1]


def test_a_folder_in_use_another_setting_and_nothing_to_resume_are_refused(colors: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="nothing to resume"):
        plan(str(colors), out, options("base"), resume=True, say=print)
    plan(str(colors), out, options("base"), say=print)
    with pytest.raises(UserError, match="resume it with --resume"):
        plan(str(colors), out, options("base"), say=print)
    with pytest.raises(UserError, match="begun with another batch-size: 4"):
        plan(str(colors), out, options("base", batch_size=5), resume=True, say=print)
    plan(str(colors), out, options("base", device="auto", save_every=7), resume=True, say=print)
    with pytest.raises(UserError, match="not an empty folder"):
        plan(str(colors), tmp_path, options("base"), say=print)


def test_an_adapter_can_be_gone_on_from(colors: Path, tmp_path: Path) -> None:
    tune(colors, tmp_path / "first", options("small"))
    start = AdapterOptions(method="lora", start=str(tmp_path / "first" / "adapter"))
    planned, second = tune(colors, tmp_path / "second", options("small", adapter=start))
    assert planned.size == plan(str(colors), tmp_path / "fresh", options("small"), num_held_out=2, say=print).size
    assert f"lora that goes on from {start.start}: {planned.size.num_trained:,} of" in planned.lines()[1]
    first = json.loads((tmp_path / "first" / "report.json").read_text(encoding="utf-8"))
    assert second.before is not None
    assert second.before.loss == pytest.approx(first["after"]["loss"], rel=1e-4)
    assert losses(tmp_path / "second")[0] < losses(tmp_path / "first")[0]


def test_an_adapter_to_go_on_from_is_planned_by_its_own_rank_and_targets(tmp_path: Path) -> None:
    own = AdapterOptions(method="lora", rank=2, targets=("attention", "projector"))
    model = base_model("tiny")
    adapt(model, own, 0, torch.float32)
    save_adapter(model, tmp_path / "adapter")
    stage = stage_of("tiny", own)
    start = AdapterOptions(method="lora", start=str(tmp_path / "adapter"))
    sizes = [trained_size(model.config, stage, adapter, torch.float32) for adapter in (own, start)]
    assert sizes[0] == sizes[1]
    assert sizes[0].num_trained == sum(one.numel() for one in model.parameters() if one.requires_grad)


@pytest.mark.parametrize("wrong", [{"rank": 4}, {"alpha": 8.0}, {"rank_stabilised": True}, {"targets": ("mlp",)}])
def test_what_an_adapter_to_go_on_from_has_of_its_own_is_refused_beside_it(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"adapter.{next(iter(wrong))} must be left out"):
        AdapterOptions(method="lora", start="tuned/adapter", **wrong)


@pytest.mark.parametrize("wrong", [{"epochs": 0.0}, {"batch_size": 0}, {"steps": 0}, {"seq_len": 0}])
def test_a_length_of_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        options("base", **wrong)


@pytest.mark.parametrize("size", SIZES)
def test_all_weights_are_balanced_as_in_the_paper_and_an_adapter_is_not(size: str) -> None:
    assert stage_of(size, AdapterOptions()).balance_loss_weight == STAGES[size]["fine-tuning"].balance_loss_weight
    assert stage_of(size, LORA).balance_loss_weight == 0


@pytest.mark.parametrize("size", SIZES)
def test_a_trained_parameter_takes_16_bytes_beside_its_weight(size: str) -> None:
    held = trained_size(preset(size), stage_of(size, LORA), LORA, torch.bfloat16)
    assert held.optimizer_bytes == 16 * held.num_trained
