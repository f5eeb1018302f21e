"""A run that trains an adapter: how the model gets it, what its checkpoints hold, and where it is written.

The weights under an adapter do not change, so a checkpoint holds the adapter alone and a resumed run reads the weights
from where they came from.
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
    """Put the adapter of a recipe on the model and freeze all else. In place; before the model is sharded.

    `dtype` is what the run computes in.
    """
    put_adapter(model, options, seed)
    if options.method == "qlora":
        quantize_base(model, options.base, dtype)


def put_adapter(model: VL2, options: AdapterOptions, seed: int = 0) -> None:
    """Put a fresh adapter on the model, or the one to go on from, over weights as they are; freeze all else. In place.

    A model of shapes only gets an adapter of shapes only.
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
    """Return the weights that are trained, by name, sharing their memory."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def write_adapter(model: VL2, run_folder: Path, base_model: str) -> Path:
    """Write the adapter into the run's folder, in place of an older one, and return where it is."""
    folder = run_folder / ADAPTER
    fresh = run_folder / f".{ADAPTER}.new-{os.getpid()}"
    try:
        save_adapter(model, fresh, base_model)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
    return folder
