"""Preference optimization: its loss beside the formula on given log-probabilities, its gradients beside autograd on
single conversations, and pairs that stay together from the file to the loss.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.data.loader_case import make_processor, make_record
from tests.lora.adapted import adapted_model, base_model, disturb
from tests.model.configs import small_model
from tests.train.packs import join, random_pack, single_rows
from tests.train.test_stage import a_stage
from vl2.data.index import build_index, count_tokens
from vl2.data.loader import Loader, LoaderOptions
from vl2.data.mixture import Group, Mixture
from vl2.data.pack import Packed, Packing
from vl2.data.pack_plan import PackPlan, PlanOptions
from vl2.data.record import Record
from vl2.data.store import read_records, write_records
from vl2.errors import UserError
from vl2.grid import UNTILED
from vl2.lora.attach import add_lora, remove_lora, without_lora
from vl2.lora.spec import LoRASpec
from vl2.model import VL2
from vl2.process.sample import IGNORE_ID
from vl2.train.adapter_options import AdapterOptions
from vl2.train.preference import preference_loss
from vl2.train.ranks import ONE
from vl2.train.recipe import ModelOptions, Recipe, RunOptions
from vl2.train.shard import shard
from vl2.train.step import StepReport, TrainStep

# chosen, rejected, and the reference's for both
LOG_PROBS = [(-3.0, -4.0, -3.5, -3.0), (-12.0, -2.5, -11.0, -2.0), (-7.0, -7.0, -7.0, -7.0), (-1.0, -60.0, -2.0, -20.0)]


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_formula_on_given_log_probabilities(beta: float, smoothing: float) -> None:
    loss_p, margin_p = preference_loss(
        *(torch.tensor(column) for column in zip(*LOG_PROBS, strict=True)), beta=beta, label_smoothing=smoothing
    )
    for (chosen, rejected, ref_chosen, ref_rejected), loss, margin in zip(
        LOG_PROBS, loss_p.tolist(), margin_p.tolist(), strict=True
    ):
        # As TRL's DPOTrainer writes it ("sigmoid", with label smoothing), in plain Python.
        logits = (chosen - rejected) - (ref_chosen - ref_rejected)
        log_sigmoid = -math.log1p(math.exp(-beta * logits))
        log_sigmoid_negative = -math.log1p(math.exp(beta * logits))
        expected = -log_sigmoid * (1 - smoothing) - log_sigmoid_negative * smoothing
        assert loss == pytest.approx(expected, rel=1e-5)
        assert margin == pytest.approx(beta * logits, rel=1e-5, abs=1e-7)


def pairs_of(model: VL2, count: int, seed: int) -> Packed:
    """Return a pack of random pairs; each pair has its image twice."""
    documents = []
    for number in range(count):
        grid = (UNTILED, (2, 1), None)[(number + seed) % 3]
        documents += [(10 + number, grid), (7 + 2 * number, grid)]
    return random_pack(model.config, documents, seed=seed)


def answer_log_prob(model: VL2, pack: Packed, document: int) -> Tensor:
    """Return the log-probability of one document's answer from a row of its own and a full softmax."""
    batch = single_rows(pack)[document]
    start, end = pack.cu_seqlens[document : document + 2].tolist()
    labels = pack.labels[start:end]
    logits = model(batch).logits[0, : end - start].float()
    places = [i for i in range(len(labels) - 1) if labels[i + 1] != IGNORE_ID]
    return torch.stack([logits[i].log_softmax(0)[labels[i + 1]] for i in places]).sum()


def adapted(size: str) -> VL2:
    model = small_model(size)
    add_lora(model, LoRASpec(rank=4, alpha=8.0), seed=1)
    disturb(model)
    return model


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_a_step_has_loss_and_gradients_of_single_conversations(size: str) -> None:
    stage = a_stage(objective="preference", beta=0.3, label_smoothing=0.1, balance_loss_weight=0.0, mask_prompt=True)
    step = TrainStep(shard(adapted(size), "replicated", ONE, torch.float32), stage, ONE)
    packs = [pairs_of(step.model, 2, seed=3), pairs_of(step.model, 1, seed=4)]
    report = step.accumulate([replace(pack).with_length(len(pack) + 5) for pack in packs])
    ours = {name: gradient.clone() for name, gradient in step.optimizer.gradients()}

    model, plain = adapted(size), adapted(size)
    remove_lora(plain)
    losses, margins = [], []
    for pack in packs:
        for pair in range(len(pack.names) // 2):
            trained = [answer_log_prob(model, pack, 2 * pair + one) for one in (0, 1)]
            with torch.no_grad():
                reference = [answer_log_prob(plain, pack, 2 * pair + one) for one in (0, 1)]
            margin = 0.3 * (trained[0] - reference[0] - trained[1] + reference[1])
            losses.append(-(0.9 * torch.sigmoid(margin).log() + 0.1 * torch.sigmoid(-margin).log()))
            margins.append(margin.item())
    loss = torch.stack(losses).mean()
    loss.backward()
    assert report.loss == pytest.approx(float(loss), rel=1e-5)
    assert report.preference_margin == pytest.approx(sum(margins) / 3, rel=1e-4)
    assert report.preference_accuracy == pytest.approx(sum(margin > 0 for margin in margins) / 3)
    assert report.loss_by_category["ocr"][1] == 3
    theirs = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert ours.keys() == theirs.keys()
    scale = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5 * scale, rtol=1e-3, msg=lambda m, n=name: f"{n} {m}")


def test_a_new_adapter_has_no_margin_and_prefers_after_some_steps() -> None:
    stage = a_stage(objective="preference", balance_loss_weight=0.0, mask_prompt=True)
    model = small_model("base")
    add_lora(model, LoRASpec(rank=4, alpha=8.0), seed=1)
    step = TrainStep(shard(model, "replicated", ONE, torch.float32), stage, ONE)
    packs = [pairs_of(step.model, 3, seed=1)]
    reports: list[StepReport] = []
    for _ in range(12):
        reports.append(step.accumulate(packs))
        step.apply(reports[-1], 5e-3)
    assert reports[0].loss == pytest.approx(math.log(2), rel=1e-6)
    assert reports[0].preference_margin == 0
    assert reports[-1].loss < 0.5 * reports[0].loss
    assert reports[-1].preference_accuracy == 1


def test_without_its_adapter_a_model_computes_as_before() -> None:
    model, plain = adapted_model("base"), base_model("base")
    pack = join([pairs_of(plain, 1, seed=0)])
    with torch.no_grad():
        adapted_states = model.states(pack).states_BSD
        with without_lora(model):
            assert torch.equal(model.states(pack).states_BSD, plain.states(pack).states_BSD)
        assert torch.equal(model.states(pack).states_BSD, adapted_states)
        assert not torch.equal(adapted_states, plain.states(pack).states_BSD)


def pair_record(category: str, number: int) -> Record:
    return replace(make_record(category, number), rejected=f"number {number} is worse " * (1 + number % 3))


def test_a_pair_is_counted_planned_and_loaded_as_two_neighbors() -> None:
    processor = make_processor()
    stores = {"pairs": [pair_record("caption", i) for i in range(12)] + [make_record("caption", 99)]}
    index = build_index("pairs", stores["pairs"], processor, is_pairs=True)
    assert [problem.record for problem in index.problems] == [12]
    assert "has no rejected answer" in index.problems[0].message
    record = stores["pairs"][0]
    assert count_tokens(record, processor, is_pair=True).total == (
        count_tokens(record, processor).total + count_tokens(record.with_rejected(), processor).total
    )
    packing = Packing(seq_len=1200, max_tiles=40)
    mixture = Mixture(groups=(Group(share=1.0, categories={"caption": 1.0}),))
    plan = PackPlan(index.sources(), mixture, PlanOptions(packs_per_step=2, packing=packing, window_packs=4))
    loader = Loader(plan, stores, processor, options=LoaderOptions(is_pairs=True))
    seen = 0
    for loaded, _ in zip(loader, range(6), strict=False):
        for pack in loaded.packs:
            assert len(pack.names) % 2 == 0
            for place in range(0, len(pack.names), 2):
                assert pack.names[place] == pack.names[place + 1]
                number = int(pack.names[place].split("-")[1])
                texts = []
                for document in (place, place + 1):
                    start, end = pack.cu_seqlens[document : document + 2].tolist()
                    labels = pack.labels[start:end]
                    texts.append(processor.tokenizer.decode(labels[labels != IGNORE_ID].tolist()))
                assert f"number {number} is worse" in texts[1]
                assert f"number {number} is worse" not in texts[0]
                seen += 1
    assert seen >= 12
    assert not loader.problems


@pytest.mark.parametrize("ending", ["jsonl", "tar", "parquet"])
def test_a_rejected_answer_is_written_and_read(ending: str, tmp_path: Path) -> None:
    records = [pair_record("caption", 0), make_record("caption", 1), pair_record("text", 2)]
    write_records(iter(records), str(tmp_path / f"pairs.{ending}"))
    found = [one.record for one in read_records(str(tmp_path / f"pairs.{ending}"))]  # type: ignore[union-attr]
    assert [one.rejected for one in found] == [one.rejected for one in records]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rejected": "   "}, "must not be blank"),
        ({"rejected": 3}, "rejected must be a text"),
        ({"rejected": "A cat."}, "must differ"),
        ({"messages": [{"role": "document", "content": "A page."}], "rejected": "x"}, "a document has no answer"),
        ({"rejected": "{box:3}", "objects": []}, None),  # without objects it is plain text
    ],
)
def test_a_rejected_answer_that_makes_no_sense_is_refused(change: dict[str, Any], says: str | None) -> None:
    values = {
        "id": "1", "source": "s", "category": "text", "language": "en", "licence": "CC0-1.0",
        "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}],
    }  # fmt: skip
    if says is None:
        Record.from_dict(values | change)
        return
    with pytest.raises(UserError, match=says):
        Record.from_dict(values | change)


def preference_recipe(stage: dict[str, Any], recipe: dict[str, Any]) -> Recipe:
    values = {"objective": "preference", "balance_loss_weight": 0.0, "mask_prompt": True, **stage}
    return Recipe(
        model=ModelOptions(name="nano"),
        stage=a_stage(**values),
        run=RunOptions(folder="run"),
        **{"adapter": AdapterOptions(method="lora"), **recipe},
    )


@pytest.mark.parametrize(
    ("stage", "recipe", "says"),
    [
        ({}, {"adapter": AdapterOptions()}, "trains an adapter"),
        ({"balance_loss_weight": 0.01}, {}, "no balance loss"),
        ({"beta": 0.0}, {}, "beta must be a positive number"),
        ({"label_smoothing": 0.5}, {}, "label_smoothing must be in"),
        ({"mask_prompt": False}, {}, "mask_prompt must be true"),
        ({"objective": "dpo"}, {}, "objective must be one of next_token, preference"),
    ],
)
def test_settings_that_do_not_fit_are_refused(stage: dict[str, Any], recipe: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        preference_recipe(stage, recipe)
