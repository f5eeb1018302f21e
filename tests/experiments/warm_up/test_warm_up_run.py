"""A warm-up run: it learns, resumes exactly, and leaves an encoder that the next stage can load."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.nano.draw.frame import PROCESSOR
from experiments.nano.warm_up.heads import Read, Recognized
from experiments.nano.warm_up.recipe import TileOptions, WarmUpOptions, WarmUpRecipe, read_warm_up
from experiments.nano.warm_up.train import WarmUpRun, make_drawer, warm_up
from tests.experiments.nano_inputs import write_inputs
from tests.synth.pill_set import write_set
from vl2.checkpoint import load_model
from vl2.config import preset
from vl2.errors import RankLost, UserError
from vl2.model import VL2
from vl2.train.checkpoint import checkpoint_steps, newest_checkpoint
from vl2.train.ranks import ONE, Ranks
from vl2.train.recipe import ModelOptions

pytestmark = pytest.mark.usefixtures("no_system_fonts")


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    return write_inputs(tmp_path / "inputs")


def recipe(inputs: Path, folder: str, num_steps: int, save_every: int = 2) -> WarmUpRecipe:
    return WarmUpRecipe(
        folder=str(inputs.parent / folder),
        tiles=TileOptions(inputs=str(inputs), chinese_share=0.0),
        options=WarmUpOptions(num_steps=num_steps, batch_size=4, save_every_steps=save_every, log_every_steps=1),
        model=ModelOptions(name="nano", init="random"),
        compute="float32",
        seed=3,
    )


def lines(folder: str) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "tiles_per_s"} for line in found]


def exported(plan: WarmUpRecipe, *, resume: bool = False, say: Callable[[str], None] = lambda _: None) -> Path:
    outcome = warm_up(plan, resume=resume, say=say)
    assert outcome.ended == "finished"
    assert outcome.export is not None
    return outcome.export


def test_a_lost_rank_is_told_with_how_to_go_on(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = WarmUpRun._one_step

    def lose(run: WarmUpRun, rate: float) -> Recognized:
        if run.step == 3:
            raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242")
        return step(run, rate)

    monkeypatch.setattr(WarmUpRun, "_one_step", lose)
    with pytest.raises(
        RankLost, match=r"rank 0 of 1: the connection .* has broken: .* is .*step-00000002: continue with"
    ):
        warm_up(recipe(inputs, "lost", 4), say=lambda _: None)


def test_a_run_that_was_killed_and_goes_on_has_every_step_once_in_its_metrics(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, step = recipe(inputs, "killed", 4), WarmUpRun._one_step

    def die(run: WarmUpRun, rate: float) -> Recognized:
        if run.step == 3:
            run.checkpoints.wait()
            raise KeyboardInterrupt
        return step(run, rate)

    with monkeypatch.context() as patch:
        patch.setattr(WarmUpRun, "_one_step", die)
        with pytest.raises(KeyboardInterrupt):
            warm_up(plan, say=lambda _: None)
    assert [line["step"] for line in lines(plan.folder)] == [1, 2, 3]
    assert checkpoint_steps(Path(plan.folder)) == [2]
    warm_up(plan, resume=True, say=lambda _: None)
    assert [line["step"] for line in lines(plan.folder)] == [1, 2, 3, 4]


def test_resumed_is_as_if_never_stopped(inputs: Path) -> None:
    whole = recipe(inputs, "whole", 4)
    warm_up(whole, say=lambda _: None)
    parts = recipe(inputs, "parts", 2)
    run = WarmUpRun(recipe(inputs, "parts", 4), ONE)
    run.recipe = recipe(inputs, "parts", 4)
    stopped = WarmUpRun(parts, ONE)
    # Two steps of the run of four, and then it is killed.
    stopped.recipe = run.recipe
    for _ in range(2):
        stopped._one_step(whole.options.learning_rate * (stopped.step + 1) / whole.options.warmup_steps)
        stopped.step += 1
    stopped.checkpoints.save(stopped.step, stopped._state(), stopped.recipe.to_toml())
    stopped.checkpoints.wait()
    out = exported(recipe(inputs, "parts", 4), resume=True)
    assert lines(whole.folder)[2:] == lines(str(inputs.parent / "parts"))
    one, two = load_model(out), load_model(Path(whole.folder) / "export")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_signal_ends_it_with_a_checkpoint_from_which_it_goes_on(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = WarmUpRun._one_step

    def terminate(run: WarmUpRun, rate: float) -> Recognized:
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, rate)

    whole, plan = recipe(inputs, "whole", 5, save_every=5), recipe(inputs, "parts", 5, save_every=5)
    with monkeypatch.context() as patch:
        patch.setattr(WarmUpRun, "_one_step", terminate)
        said: list[str] = []
        outcome = warm_up(plan, say=said.append)
    assert (outcome.ended, outcome.step, outcome.export) == ("terminated", 3, None)
    assert said[-1] == f"terminated at step 3 of 5: saved {outcome.checkpoint}; go on with --resume"
    assert newest_checkpoint(Path(plan.folder)) == outcome.checkpoint
    one, two = load_model(exported(plan, resume=True)), load_model(exported(whole))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert lines(plan.folder) == lines(whole.folder)


def test_tiles_drawn_ahead_are_the_same_tiles(inputs: Path) -> None:
    here, ahead = recipe(inputs, "here", 3), recipe(inputs, "ahead", 3)
    ahead = replace(ahead, options=replace(ahead.options, draw_processes=2))
    one, two = load_model(exported(here)), load_model(exported(ahead))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert lines(ahead.folder) == lines(here.folder)
    assert not multiprocessing.active_children()


def test_the_export_is_the_model_with_another_encoder_and_projector(inputs: Path) -> None:
    out = exported(recipe(inputs, "run", 2))
    trained = load_model(out)
    assert isinstance(trained, VL2)
    fresh = WarmUpRun(recipe(inputs, "fresh", 2), ONE).model
    moved = {name.split(".")[0] for (name, a), b in zip(trained.named_parameters(), fresh.parameters(), strict=True)
             if not torch.equal(a, b)}  # fmt: skip
    assert moved == {"vision", "projector"}
    assert all(
        not torch.equal(a, b) for a, b in zip(trained.vision.parameters(), fresh.vision.parameters(), strict=True)
    )
    assert (out / "tokenizer.json").is_file()


def test_a_thing_of_one_style_alone_is_no_class(inputs: Path) -> None:
    (inputs / "art/three").mkdir()
    write_set(inputs / "art/three")
    index = inputs / "art/one/sprites.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    content["sprites"][0]["en"] = "a pill of this set"
    index.write_text(json.dumps(content), encoding="utf-8")
    options = TileOptions(inputs=str(inputs), art=("one", "two", "three"))
    drawer = make_drawer(options, preset("nano"), PROCESSOR)
    pills = {"red pill", "green pill", "blue pill", "black pill"}
    assert set(drawer.classes.sprites) == pills, "two styles have the red one, one its own"
    assert [{kind.en for kind in style} for style in drawer.styles] == [pills - {"red pill"}, pills, pills]
    alone = make_drawer(replace(options, art=("one",)), preset("nano"), PROCESSOR)
    assert "a pill of this set" in alone.classes.sprites, "of one style all are"


def test_a_share_of_pages_is_a_share(inputs: Path) -> None:
    with pytest.raises(UserError, match=r"pages_share must be from 0 to 1, got 1\.5"):
        TileOptions(inputs=str(inputs), pages_share=1.5)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        *(
            (name, 0, "at least 1")
            for name in ("num_steps", "batch_size", "raise_steps", "draw_processes", "log_every_steps")
        ),
        ("save_every_steps", 0, "at least 1"),
        ("warmup_steps", -1, "at least 0"),
        ("difficulty", 1.5, "from 0 to 1"),
    ],
)
def test_numbers_that_no_run_can_have_are_refused(name: str, value: float, allowed: str) -> None:
    with pytest.raises(UserError, match=rf"^{name} must be {allowed}, got {value}$"):
        WarmUpOptions(**{"num_steps": 4, name: value})  # type: ignore[arg-type]


def test_fewer_tiles_than_ranks_are_refused_before_anything_is_made(inputs: Path) -> None:
    plan = recipe(inputs, "few", 2)
    ranks = Ranks(rank=0, size=5, device=torch.device("cpu"))
    with pytest.raises(UserError, match=r"^batch_size must be at least 1 for each of the 5 ranks, got 4$"):
        WarmUpRun(plan, ranks)
    assert not Path(plan.folder).exists()


@pytest.mark.parametrize(("batch_size", "share"), [(4, 1 / 2), (5, 3 / 5)])
def test_the_loss_of_a_rank_counts_by_its_share_of_the_tiles(
    inputs: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, share: float
) -> None:
    plan = recipe(inputs, "share", 2)
    run = WarmUpRun(replace(plan, options=replace(plan.options, batch_size=batch_size)), ONE)
    # The first of two; the other's gradients never come.
    run.ranks = Ranks(rank=0, size=2, device=torch.device("cpu"))
    weight = torch.zeros((), requires_grad=True)
    nothing, no = torch.zeros(1), torch.zeros(1, dtype=torch.bool)
    read = Read(loss=0 * weight, wanted_n=nothing, is_right_n=no, is_named_n=no)
    found = Recognized(class_loss=3 * weight, box_loss=0 * weight, wanted_n=nothing, is_right_n=no, read=read)
    monkeypatch.setattr(run, "net", _Given(found))
    monkeypatch.setattr(run, "_adjust", lambda _: None)
    run._one_step(0.0)
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(3 * share)


class _Given(torch.nn.Module):
    def __init__(self, found: Recognized) -> None:
        super().__init__()
        self._found = found

    def forward(self, *_: object) -> Recognized:
        return self._found


def test_easy_tiles_are_learned(inputs: Path) -> None:
    run = WarmUpRun(recipe(inputs, "learn", 12), ONE)
    # The same tiles again and again: the loss must fall.
    losses = []
    for _ in range(12):
        losses.append(run._one_step(1e-3).class_loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_folder_with_a_run_is_not_overwritten(inputs: Path) -> None:
    warm_up(recipe(inputs, "run", 2), say=lambda _: None)
    with pytest.raises(UserError, match="go on with --resume"):
        warm_up(recipe(inputs, "run", 2), say=lambda _: None)


def test_a_recipe_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "warm.toml"
    path.write_text('folder = "x"\n[tiles]\ninputs = "t"\n[options]\nnum_step = 3\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"num_step.*did you mean num_steps"):
        read_warm_up(path)


def test_tokens_count_little_until_patches_tell_letters_apart(inputs: Path) -> None:
    run = WarmUpRun(recipe(inputs, "weight", 2), ONE)
    weights = []
    for accuracy in (0.0, 0.21, 0.42, 0.9):
        run.accuracy = accuracy
        weights.append(run.reading_weight)
    assert weights == [0.1, 0.5, 1.0, 1.0], "raise_at is 0.42"
