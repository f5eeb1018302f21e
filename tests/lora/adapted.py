"""Small models with adapters that change something: B is not zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.reference import CHECKPOINTS, sample_of
from vl2.batch import Batch
from vl2.checkpoint import load_model
from vl2.lora.attach import add_lora
from vl2.lora.spec import TARGETS, LoRASpec
from vl2.model import VL2
from vl2.process.sample import collate

EVERYTHING = LoRASpec(rank=4, alpha=8.0, targets=TARGETS)


def base_model(size: str) -> VL2:
    return load_model(CHECKPOINTS / size)


def disturb(model: torch.nn.Module, seed: int = 0, strength: float = 0.05) -> None:
    """Fill every B, so that the adapter says something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.copy_(torch.empty(parameter.shape).normal_(0, strength, generator=generator))


def adapted_model(size: str, spec: LoRASpec = EVERYTHING) -> VL2:
    model = base_model(size)
    add_lora(model, spec, seed=1)
    disturb(model)
    return model


def batch_of(size: str, *cases: str) -> Batch:
    return collate([sample_of(size, case) for case in cases or ("text", "single")], pad="right")


@torch.no_grad()
def logits(model: VL2, batch: Batch) -> Tensor:
    return model.eval()(batch).logits


def tree_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def state(model: VL2) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
