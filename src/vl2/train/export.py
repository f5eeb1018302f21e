"""From a checkpoint to a folder in the released layout, which `vl2.load` and other tools open."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from vl2.config import ModelConfig
from vl2.errors import UserError
from vl2.model import VL2
from vl2.model.empty import shapes_only
from vl2.process.preprocess_config import PreprocessConfig
from vl2.train.checkpoint import FOLDER, RECIPE, find_checkpoint
from vl2.train.prepare import MODEL_FILES, TOKENIZER_FILES
from vl2.train.recipe import read_recipe
from vl2.train.tensor_files import TensorReader, whole_block
from vl2.weights import save_model
from vl2.weights.load import materialize

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export(run_or_checkpoint: Path, out: Path, *, dtype: str | None = None, replaces: bool = False) -> Path:
    """Write the model of a checkpoint, or of a run's newest one, and return the folder.

    `dtype` None takes the type that the run computed in. UserError if the folder is there and may not be replaced.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    checkpoint = find_checkpoint(run_or_checkpoint)
    files = _run_folder(checkpoint) / MODEL_FILES
    recipe = read_recipe(checkpoint / RECIPE)
    if recipe.adapter.is_used:
        raise UserError(f"{checkpoint} is of a run that trains an adapter: it writes the folder adapter at its end")
    dtype = dtype or recipe.engine.compute
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
    """Return the model of a checkpoint, whichever ranks wrote it.

    What was trained is read from the optimizer's masters: the model's own weights may be rounded copies of them.
    """
    reader = TensorReader(checkpoint)
    stored = set(reader.unread())
    with shapes_only():
        model = VL2(config)
    materialize(model, dtype, torch.device("cpu"))
    for name, tensor in model.state_dict().items():
        master = f"train_step/{name}/master"
        reader.read(master if master in stored else f"model/{name}", whole_block(tensor))
    return model.eval()


def _run_folder(checkpoint: Path) -> Path:
    folder = checkpoint.parent.parent
    if checkpoint.parent.name != FOLDER or not (folder / MODEL_FILES / "config.json").is_file():
        raise UserError(f"{checkpoint} is not inside a run folder, which has the model's configuration and tokenizer")
    return folder
