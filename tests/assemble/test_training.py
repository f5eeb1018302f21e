"""From random parts through a few steps of alignment to an exported model that answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.assemble.hub_models import save_deepseek_v2, save_siglip
from tests.train.toy import run_toy, toy_recipe, toy_stage
from vl2.assemble import assemble_checkpoint
from vl2.checkpoint.load import load_model
from vl2.data.store import write_records
from vl2.infer.vlm import load
from vl2.synth.scene import Scene
from vl2.synth.source import generate
from vl2.train.metrics import read_metrics
from vl2.train.recipe import GroupOptions


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """For every test here."""


def test_an_assembled_model_is_aligned_and_answers(tmp_path: Path) -> None:
    save_deepseek_v2(tmp_path / "language", rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    save_siglip(tmp_path / "vision")
    assembled = tmp_path / "assembled"
    assemble_checkpoint(str(tmp_path / "language"), str(tmp_path / "vision"), assembled, dtype="float32")
    (tmp_path / "data").mkdir()
    scenes = generate(Scene(languages=("en",), tasks=("caption",)), 4, 5, 1)
    write_records((replace(scene, category="caption") for scene in scenes), str(tmp_path / "data" / "captions.jsonl"))

    stage = toy_stage(
        name="alignment",
        frozen=("language",),
        expert_bias_step=0.0,
        learning_rate=1e-2,
        num_steps=12,
        batch_size=4,
        is_packed=False,
    )
    recipe = toy_recipe(assembled, tmp_path / "data", tmp_path / "run", stage, save_every_steps=12)
    captions = GroupOptions(share=1.0, categories={"caption": 1.0})
    recipe = replace(recipe, data=replace(recipe.data, groups=(captions,)))
    outcome = run_toy(recipe)
    assert outcome.ended == "finished"
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.2

    before, after = load_model(assembled), load_model(tmp_path / "run" / "export")
    head = (m.language.lm_head.weight for m in (before, after))
    assert torch.equal(*head)
    assert not torch.equal(before.projector.layers[0].weight, after.projector.layers[0].weight)
    vlm = load(tmp_path / "run" / "export", device="cpu")
    assert vlm.chat("What is it?", images=[scene_image()], max_new_tokens=3).usage.completion_tokens > 0


def scene_image() -> Path:
    return Path(__file__).parents[2] / "examples" / "shapes.png"
