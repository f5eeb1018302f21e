"""Full-size quantised checkpoints with random weights, written without the plain ones: for speed and memory only.

The base size is 55 GB in bfloat16 and 16 GB in int4: with this, its speed can be measured where its plain weights would
not fit. Codes are drawn evenly and scales are such that weights have the usual deviation.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from vl2.config import preset
from vl2.model import VL2
from vl2.quant.config import QuantizationConfig
from vl2.quant.modules import QuantizedExperts, QuantizedLinear
from vl2.quant.write import write_quantized
from vl2.weights.locate import built_in_folder

DEVIATION = 0.02
# Standard deviations of codes drawn evenly: 0..15 around 8, and -128..127.
CODE_DEVIATION = {"int4": 4.64, "int8": 73.9}


def write_random_quantized(
    size: str, folder: Path, *, weights: str = "int4", seed: int = 0, say: Callable[[str], None] = lambda module: None
) -> None:
    """Write a checkpoint of a released size to a new folder; `say` is told the name of each module."""
    generator = torch.Generator().manual_seed(seed)

    def fill(model: VL2, name: str) -> None:
        say(name)
        _fill(model, name, generator)

    processor = built_in_folder() if size == "nano" else Path(str(resources.files("vl2") / "presets"))
    beside = [processor / "processor_config.json", built_in_folder() / "tokenizer.json"]
    write_quantized(preset(size), QuantizationConfig.named(weights), folder, fill, beside=beside)


def _fill(model: VL2, name: str, generator: torch.Generator) -> None:
    module = model.get_submodule(name)
    kind = module.kind if isinstance(module, QuantizedLinear | QuantizedExperts) else None
    for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        values = tensor.detach()
        if kind is not None and leaf.endswith("codes"):
            _draw_bytes(values, generator)
        elif kind is not None and leaf.endswith("scales"):
            # Either sign: codes have a mean of -1/2, and weights of one sign would send all tokens to the same experts.
            values.random_(0, 2, generator=generator).mul_(2).sub_(1).mul_(DEVIATION / CODE_DEVIATION[kind])
        elif leaf == "weight" and values.dim() == 1:  # of a norm
            values.fill_(1)
        else:
            values.normal_(0, DEVIATION, generator=generator)


def _draw_bytes(codes: Tensor, generator: torch.Generator) -> None:
    """Fill a tensor of one-byte codes, eight at a time."""
    flat = codes.view(-1)
    whole = len(flat) // 8 * 8
    flat[:whole].view(torch.int64).random_(-(2**63), None, generator=generator)
    flat[whole:].random_(generator=generator)
