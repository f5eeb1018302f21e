"""Train an adapter: attach it to the model, select the state for checkpoints, and write the result.

The weights under an adapter do not change, so a checkpoint holds the adapter only. A resumed run reads the weights
from the original checkpoint again.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from vl2.errors import UserError
from vl2.files import local_path
from vl2.lora.attach import add_lora, lora_layers
from vl2.lora.peft_files import load_adapter, save_adapter
from vl2.model import VL2
from vl2.quant.quantize_model import quantize_base
from vl2.train.adapter_options import AdapterOptions

ADAPTER = "adapter"  # folder of a run


def adapt(model: VL2, options: AdapterOptions, seed: int, dtype: torch.dtype) -> None:
    """Attach a recipe's adapter to the model and freeze all other weights. In place; call it before sharding.

    With QLoRA the frozen weights are also quantized. `dtype` is the compute type of the run.
    """
    put_adapter(model, options, seed)
    if options.method == "qlora":
        quantize_base(model, options.base, dtype)


def put_adapter(model: VL2, options: AdapterOptions, seed: int = 0) -> None:
    """Attach a new adapter, or the one in `options.start`, and freeze all other weights. In place.

    The weights are not quantized. A model on the meta device gets an adapter on the meta device.
    """
    if options.start:
        load_adapter(model, local_path(options.start))
        model.requires_grad_(False)
        for _, layer in lora_layers(model):
            layer.dropout = options.dropout
            for parameter in layer.parameters(recurse=False):
                parameter.requires_grad_(True)
    else:
        add_lora(model, options.spec(), seed)


def trained_state(model: VL2) -> dict[str, Tensor]:
    """Return the trained weights by name; they share memory with the model."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def write_adapter(model: VL2, run_folder: Path, base_model: str) -> Path:
    """Write the adapter into the run's folder, replacing an older one, and return its folder."""
    folder = run_folder / ADAPTER
    fresh = run_folder / f".{ADAPTER}.new-{os.getpid()}"
    try:
        save_adapter(model, fresh, base_model)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
    return folder
