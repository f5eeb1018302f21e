"""Write full-size checkpoints with random weights, to measure speed and memory. The tokenizer is the built-in one.

A plain checkpoint has the names, shapes and types of the released ones. A quantized checkpoint is written directly,
without plain weights. The base size is 55 GB in bfloat16 and 16 GB in int4, so the speed of int4 can be measured on
machines that cannot hold the plain weights.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from vl2.checkpoint.empty_model import build_empty
from vl2.checkpoint.folder import CONFIG
from vl2.checkpoint.names import places
from vl2.checkpoint.quantization_config import QuantizationConfig
from vl2.checkpoint.resolve import BUILT_IN, built_in_folder
from vl2.checkpoint.write import disk_errors, write_folder, write_quantized
from vl2.config import OCR_PRESETS, ModelConfig, preset
from vl2.errors import UserError
from vl2.model import VL2
from vl2.quant.modules import QuantizedExperts, QuantizedLinear

# The same strings as in `vl2.process.tokenizer`, which this package does not import.
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
TABLE_CELL = ("<td>", "</td>")
PLAIN = "bfloat16"
SHARD_BYTES = 2_000_000_000
DEVIATION = 0.02
# Standard deviations of uniformly drawn codes: 0..15 around 8, and -128..127.
CODE_DEVIATION = {"int4": 4.64, "int8": 73.9}


def write_random_checkpoint(size: str, folder: Path, *, weights: str = PLAIN, seed: int = 0) -> None:
    """Write a checkpoint of a released size to a new folder, in bfloat16 or quantized.

    Matrices are normally distributed, and the weights of norms are ones. Raise UserError if the folder exists and is
    not empty, or if the disk is too full.
    """
    generator = torch.Generator().manual_seed(seed)
    config = preset(size)
    with _files_beside(size) as beside:
        _write(config, folder, beside, weights, generator)


def _write(config: ModelConfig, folder: Path, beside: Sequence[Path], weights: str, generator: torch.Generator) -> None:
    if weights != PLAIN:
        quantization = QuantizationConfig.named(weights)
        write_quantized(config, quantization, folder, lambda model, name: _fill(model, name, generator), beside)
        return
    model = build_empty(config)
    state = model.state_dict()
    tensors = {
        place.name: place.view(state[place.parameter]).to(torch.bfloat16)  # all tensors, including the expert bias
        for place in places(model)
    }

    def values(names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        return ((name, random_values(name, tensors[name].shape, generator)) for name in names)

    with disk_errors(folder):
        write_folder(folder, tensors, values, {CONFIG: config.to_dict()}, beside, max_shard_bytes=SHARD_BYTES)


@contextmanager
def _files_beside(size: str) -> Iterator[list[Path]]:
    """Yield the processor's and tokenizer's files to copy; their file names are those in a checkpoint."""
    presets = built_in_folder() if size == BUILT_IN else Path(str(resources.files("vl2") / "presets"))
    if size not in OCR_PRESETS:
        yield [presets / "processor_config.json", built_in_folder() / "tokenizer.json"]
        return
    with tempfile.TemporaryDirectory(prefix="vl2-files-") as temporary:
        files = [Path(temporary) / name for name in ("processor_config.json", "tokenizer.json")]
        shutil.copyfile(presets / "ocr.processor_config.json", files[0])
        files[1].write_text(ocr_tokenizer_json(), encoding="utf-8")
        yield files


def ocr_tokenizer_json() -> str:
    """Return the built-in tokenizer.json with the role tokens replaced by table tags, as DeepSeek-OCR has them."""
    text = (built_in_folder() / "tokenizer.json").read_text(encoding="utf-8")
    for role, tag in zip((USER, ASSISTANT), TABLE_CELL, strict=True):
        text = text.replace(json.dumps(role), json.dumps(tag))
    return text


@contextmanager
def random_checkpoint(size: str, folder: Path | None) -> Iterator[Path]:
    """Yield a folder with a random checkpoint of a size.

    A given `folder` is filled if it holds no checkpoint yet, and kept. With None, a temporary folder is used and
    deleted afterwards. Raise UserError if `folder` holds a checkpoint of another size.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix=f"vl2-random-{size}-") as temporary:
            write_random_checkpoint(size, Path(temporary) / size)
            yield Path(temporary) / size
        return
    if not (folder / CONFIG).is_file():
        write_random_checkpoint(size, folder)
    if ModelConfig.from_file(folder / CONFIG) != preset(size):
        raise UserError(f"{folder} holds a checkpoint that is not of the size {size}: name another folder")
    yield folder


def random_values(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return the values of a tensor of a plain random checkpoint, in bfloat16: ones for norms, otherwise normal."""
    if len(shape) == 1 and name.endswith(".weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape).normal_(0, DEVIATION, generator=generator).to(torch.bfloat16)


def _fill(model: VL2, name: str, generator: torch.Generator) -> None:
    """Fill a module of a quantized model with random values, in place.

    Codes are uniform, and the scales are chosen so that the weights have the standard deviation DEVIATION.
    """
    module = model.get_submodule(name)
    kind = module.kind if isinstance(module, QuantizedLinear | QuantizedExperts) else None
    for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        values = tensor.detach()
        if kind is not None and leaf.endswith("codes"):
            _draw_bytes(values, generator)
        elif kind is not None and leaf.endswith("scales"):
            # Scales have random signs: codes have a mean of -1/2, so with positive scales the weights would have a
            # negative mean, which would send all tokens to the same experts.
            values.random_(0, 2, generator=generator).mul_(2).sub_(1).mul_(DEVIATION / CODE_DEVIATION[kind])
        elif leaf == "weight" and values.dim() == 1:  # the weight of a norm
            values.fill_(1)
        else:
            values.normal_(0, DEVIATION, generator=generator)


def _draw_bytes(codes: Tensor, generator: torch.Generator) -> None:
    """Fill a tensor of one-byte codes with uniform random values, eight bytes at a time."""
    flat = codes.view(-1)
    whole = len(flat) // 8 * 8
    flat[:whole].view(torch.int64).random_(-(2**63), None, generator=generator)
    flat[whole:].random_(generator=generator)
