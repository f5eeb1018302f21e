"""Export a training checkpoint as a model folder in the released layout, or as an adapter in PEFT's format."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from vl2.checkpoint import save_model
from vl2.checkpoint.empty_model import build_empty, materialize
from vl2.config import ModelConfig
from vl2.dtypes import DTYPES
from vl2.errors import UserError
from vl2.lora.attach import lora_layers
from vl2.lora.peft_files import save_adapter
from vl2.model import VL2
from vl2.process.preprocess_config import PreprocessConfig
from vl2.train.adapter import put_adapter
from vl2.train.checkpoint import FOLDER, RECIPE, find_checkpoint
from vl2.train.prepare import MODEL_FILES, TOKENIZER_FILES
from vl2.train.recipe import Recipe, read_recipe
from vl2.train.tensor_files import TensorReader, whole_block


def export(run_or_checkpoint: Path, out: Path, *, dtype: str | None = None, replaces: bool = False) -> Path:
    """Write the model or adapter of a checkpoint, or of a run's newest checkpoint, and return the folder.

    `dtype` defaults to the compute type of the run. Raise UserError if the folder exists and `replaces` is false.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    checkpoint = find_checkpoint(run_or_checkpoint)
    files = _run_folder(checkpoint) / MODEL_FILES
    recipe = read_recipe(checkpoint / RECIPE)
    dtype = dtype or recipe.engine.compute
    if recipe.adapter.is_used:
        config = ModelConfig.from_file(files / "config.json")
        return _export_adapter(checkpoint, recipe, config, out, DTYPES[dtype])
    model = read_model(checkpoint, ModelConfig.from_file(files / "config.json"), DTYPES[dtype])
    new = out.with_name(f".{out.name}.new-{os.getpid()}") if replaces and out.exists() else out
    try:
        save_model(
            model,
            new,
            extra_files=[file for name in TOKENIZER_FILES if (file := files / name).is_file()],
            extra_json={"processor_config.json": PreprocessConfig.from_file(files / "processor_config.json").to_dict()},
        )
        if new != out:
            shutil.rmtree(out)
            new.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    return out


def read_model(checkpoint: Path, config: ModelConfig, dtype: torch.dtype) -> VL2:
    """Return the model of a checkpoint that any number of ranks wrote.

    Trained weights are read from the optimizer's masters, because the model's own weights may be rounded copies.
    """
    reader = TensorReader(checkpoint)
    stored = set(reader.unread())
    model = build_empty(config)
    materialize(model, dtype, torch.device("cpu"))
    for name, tensor in model.state_dict().items():
        master = f"train_step/{name}/master"
        reader.read(master if master in stored else f"model/{name}", whole_block(tensor))
    return model.eval()


def _export_adapter(checkpoint: Path, recipe: Recipe, config: ModelConfig, out: Path, dtype: torch.dtype) -> Path:
    """Write the adapter of a checkpoint as the run does at its end. The frozen weights are not read."""
    if out.exists():
        raise UserError(f"{out} already exists: choose a new folder")
    reader = TensorReader(checkpoint)
    model = build_empty(config)
    put_adapter(model, recipe.adapter)
    for name, layer in lora_layers(model):
        for leaf, shape in list(layer.named_parameters(recurse=False)):
            tensor = torch.empty(shape.shape, dtype=dtype)
            reader.read(f"model/{name}.{leaf}", whole_block(tensor))
            setattr(layer, leaf, torch.nn.Parameter(tensor))
    try:
        save_adapter(model, out, recipe.model.name)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    return out


def _run_folder(checkpoint: Path) -> Path:
    folder = checkpoint.parent.parent
    if checkpoint.parent.name != FOLDER or not (folder / MODEL_FILES / "config.json").is_file():
        raise UserError(f"{checkpoint} is not inside a run folder, which has the model's configuration and tokenizer")
    return folder
