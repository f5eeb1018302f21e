"""A model small enough to train in a test, drawn records, and a recipe for them.

    python -m tests.train.toy RECIPE [resume]

trains a recipe in a process of its own, to be killed.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import vl2
from vl2.data.record import Message, Part, Record
from vl2.data.store import write_records
from vl2.synth.scene import Scene
from vl2.synth.source import generate
from vl2.train.recipe import (
    DataOptions,
    EngineOptions,
    GroupOptions,
    ModelOptions,
    Recipe,
    RunOptions,
    SourceOptions,
    read_recipe,
)
from vl2.train.run import Outcome, train
from vl2.train.stage import Stage

NANO = Path(vl2.__file__).parent / "nano"
WORDS = ("red", "a", "small", "house", "and", "no", "two", "of", "the", "sea")


def toy_config() -> dict[str, Any]:
    """Return the built-in model's config.json with all widths cut down."""
    config: dict[str, Any] = json.loads((NANO / "config.json").read_text(encoding="utf-8"))
    config["vision_config"] |= {"width": 24, "layers": 2, "heads": 2}
    config["projector_config"] |= {"input_dim": 24, "n_embed": 32}
    config["language_config"] |= {
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    }
    config["torch_dtype"] = "float32"
    return config


def make_toy_model(folder: Path) -> Path:
    """Write a checkpoint folder without weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(toy_config()), encoding="utf-8")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(NANO / name, folder / name)
    return folder


def text_record(number: int) -> Record:
    answer = " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(4 + number % 9))
    messages = (
        Message(role="user", parts=(Part(text=f"Say number {number}."),)),
        Message(role="assistant", parts=(Part(text=answer),)),
    )
    return Record(
        id=f"text-{number}", source="test", category="text", language="en", licence="CC0-1.0", messages=messages
    )


def make_toy_data(folder: Path, count: int = 24) -> Path:
    """Write drawn scenes of three categories, and texts. The same every time."""
    folder.mkdir(parents=True)
    for task, category in (("caption", "caption"), ("count", "vqa"), ("ground", "grounding")):
        scenes = generate(Scene(languages=("en",), tasks=(task,)), count, 5, 1)
        write_records((replace(scene, category=category) for scene in scenes), str(folder / f"{category}.jsonl"))
    write_records((text_record(i) for i in range(count)), str(folder / "text.jsonl"))
    return folder


def toy_stage(**changes: Any) -> Stage:
    values: dict[str, Any] = {
        "name": "pretraining",
        "learning_rate": 2e-3,
        "rate_multipliers": {"vision": 0.5},
        "schedule": "cosine",
        "warmup_steps": 2,
        "balance_loss_weight": 0.001,
        "expert_bias_step": 0.003,
        "num_steps": 6,
        "batch_size": 2,
        "seq_len": 512,
        "is_packed": True,
        "mask_prompt": False,
    }
    return Stage(**{**values, **changes})


GROUPS = (
    GroupOptions(share=0.7, categories={"caption": 0.5, "vqa": 0.3, "grounding": 0.2}),
    GroupOptions(share=0.3, categories={"text": 1.0}),
)


def toy_recipe(model: Path, data: Path, run_folder: Path, stage: Stage | None = None, **run: Any) -> Recipe:
    return Recipe(
        model=ModelOptions(name=str(model), init="weights" if any(model.glob("*.safetensors")) else "random"),
        stage=stage or toy_stage(),
        run=RunOptions(folder=str(run_folder), **{"save_every_steps": 2, "log_every_steps": 1, **run}),
        data=DataOptions(
            sources=(SourceOptions(name="toy", path=str(data)),), groups=GROUPS, window_packs=8, workers=1, read_ahead=2
        ),
        engine=EngineOptions(device="cpu", compute="float32"),
    )


def run_toy(recipe: Recipe, *, resume: bool = False) -> Outcome:
    return train(recipe, resume=resume, quiet=True)


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    train(read_recipe(arguments[0]), resume="resume" in arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
