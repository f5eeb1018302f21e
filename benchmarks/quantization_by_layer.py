"""What quantized weights cost in a language model that does not fit into memory, carried through it layer by layer.

    python benchmarks/quantization_by_layer.py small
    python benchmarks/quantization_by_layer.py base --beside-float32 --out base.json

A layer is drawn, put into every form, run, and let go. Held at a time are one layer in all forms, the hidden states of
each form, and in the end the head; small's peak is 2.5 GB. Weights are those of a random checkpoint, normal with norms
of ones, and nothing is written to the disk. Windows of drawn tokens are read as a prompt is, each by itself; but the
head reads all places, where an answer asks it for the last.
Random weights are a hard case: their logits are nearly even, so that the least change puts another token first.
The tables go into docs/quantization.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from logit_cost import HEAD, LogitCost, compare_logits, markdown
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.checkpoint.empty_model import build_empty
from vl2.checkpoint.load import put_values
from vl2.checkpoint.names import shapes
from vl2.checkpoint.random_checkpoint import random_values
from vl2.config import PRESETS, LanguageConfig, ModelConfig, preset
from vl2.model import VL2
from vl2.model.attention import AttentionMask
from vl2.model.rope import rotary_angles
from vl2.quant.quantize_model import SCHEME_NAMES, SCHEMES
from vl2.runtime.cpu_modules import with_kernels

# The weight of a released name and shape. It is asked for once, whatever the number of forms.
Source = Callable[[str, torch.Size], Tensor]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What came out of each form, by its name; the plain one is the first."""

    logits_SV: dict[str, Tensor]  # of all windows, one behind the other
    state_errors: dict[str, list[float]]  # after each layer, see `relative_error`


class Forms:
    """The same model in every form, all of it on the meta device but for the part that is held."""

    def __init__(self, config: ModelConfig, source: Source, dtypes: Sequence[torch.dtype]) -> None:
        """Plain ones of some types, and quantized ones in the last of these."""
        self._source = source
        self._shapes = {place: torch.Size(shape) for place, shape in shapes(build_empty(config)).items()}
        self.models: dict[str, VL2] = {}
        for dtype in dtypes:
            self.models[str(dtype).removeprefix("torch.")] = build_empty(config, dtype=dtype)
        for name in SCHEME_NAMES:
            self.models[name] = build_empty(config, SCHEMES[name], dtypes[-1])
        self.models = {name: with_kernels(model.eval()) for name, model in self.models.items()}

    @contextmanager
    def hold(self, part: str) -> Iterator[list[nn.Module]]:
        """Give a part its weights in every form, then take the memory back."""
        modules = [model.get_submodule(part) for model in self.models.values()]
        for module in modules:
            module.to_empty(device="cpu")
        for place, shape in self._shapes.items():
            if place.parameter.startswith(f"{part}."):
                weight = self._source(place.name, shape)
                for model in self.models.values():
                    put_values(model, place, weight)
        yield modules
        for module in modules:
            module.to_empty(device="meta")


def drawn(seed: int) -> Source:
    """Return a source in which a weight is the same however many layers come before it."""

    def draw(name: str, shape: torch.Size) -> Tensor:
        return random_values(name, shape, torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode())))

    return draw


def drawn_windows(config: LanguageConfig, count: int, length: int, seed: int) -> Tensor:
    """Return token ids [count, length] that begin with the first token of every prompt."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(config.vocab_size, (count, length - 1), generator=generator)
    return F.pad(ids, (1, 0), value=config.bos_token_id)


@torch.inference_mode()
def carry(
    config: ModelConfig,
    source: Source,
    ids_WS: Tensor,
    *,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16,),
    say: Say = lambda _: None,
) -> Carried:
    """Read each window with every form of the weights, see `Forms`. Each form goes on from its own hidden states."""
    forms, language = Forms(config, source, dtypes), config.language_config
    names, models = list(forms.models), list(forms.models.values())
    S, num_layers = ids_WS.shape[1], language.num_hidden_layers
    mask = AttentionMask.of_cache([0], S, torch.device("cpu"))
    angles = rotary_angles(torch.arange(S).unsqueeze(0), models[0].language.model.rotary_dim, language.rope_theta)
    with forms.hold("language.model.embed_tokens") as tables:
        states = [[table(ids_1S) for ids_1S in ids_WS.split(1)] for table in tables]
    errors: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for index in range(num_layers):
        with forms.hold(f"language.model.layers.{index}") as layers:
            for layer, mine in zip(layers, states, strict=True):
                mine[:] = [layer(x_1SD, angles, mask, None, None)[0] for x_1SD in mine]
        for name, mine in zip(names, states, strict=True):
            errors[name].append(relative_error(torch.cat(states[0]), torch.cat(mine)))
        say(f"layer {index + 1} of {num_layers}, {time.perf_counter() - start:.0f} s")
    with forms.hold("language.model.norm") as norms:
        normed = [norm(torch.cat(mine)) for norm, mine in zip(norms, states, strict=True)]
    with forms.hold("language.lm_head"):
        logits = [
            torch.cat([model.language.logits(states_SD) for states_SD in normed_WSD])
            for model, normed_WSD in zip(models, normed, strict=True)
        ]
    return Carried(logits_SV=dict(zip(names, logits, strict=True)), state_errors=errors)


def relative_error(plain_WSD: Tensor, other_WSD: Tensor) -> float:
    """Return the length of the difference, in lengths of the plain state, averaged over the places."""
    plain_WSD = plain_WSD.float()
    difference_WSD = other_WSD.float() - plain_WSD
    return float((difference_WSD.norm(dim=-1) / plain_WSD.norm(dim=-1)).mean())


def costs_of(carried: Carried) -> list[LogitCost]:
    plain_SV, *_ = carried.logits_SV.values()
    return [compare_logits(form, plain_SV, logits_SV) for form, logits_SV in carried.logits_SV.items()]


def depth_table(state_errors: dict[str, list[float]]) -> str:
    """Return the relative errors of the states after the first layer, a quarter, half and all of them, in Markdown."""
    *_, last = state_errors.values()
    n = len(last)
    depths = sorted({1, -(-n // 4), -(-n // 2), n})
    lines = [[form, *(f"{of_layer[depth - 1]:.2g}" for depth in depths)] for form, of_layer in state_errors.items()]
    return markdown(["error of the states after layer", *map(str, depths)], lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=PRESETS)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--window", type=int, default=128, help="tokens of each")
    parser.add_argument("--layers", type=int, help="only the first so many, and the head, for a quick look")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens")
    parser.add_argument("--beside-float32", action="store_true", help="show what bfloat16 itself costs")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args(arguments)
    config = preset(args.size)
    if args.layers is not None:
        if not 1 <= args.layers <= config.language_config.num_hidden_layers:
            parser.error(f"--layers must be in 1..{config.language_config.num_hidden_layers}, got {args.layers}")
        first = dataclasses.replace(config.language_config, num_hidden_layers=args.layers)
        config = dataclasses.replace(config, language_config=first)
    ids_WS = drawn_windows(config.language_config, args.windows, args.window, args.seed)
    dtypes = [torch.float32, torch.bfloat16] if args.beside_float32 else [torch.bfloat16]
    carried = carry(
        config, drawn(args.seed), ids_WS, dtypes=dtypes, say=lambda line: print(line, file=sys.stderr, flush=True)
    )
    costs = costs_of(carried)
    print(markdown(HEAD, [cost.cells() for cost in costs]), end="\n\n")
    print(depth_table(carried.state_errors))
    if args.out is not None:
        asked = {name: getattr(args, name) for name in ("size", "layers", "windows", "window", "seed")}
        figures = {**asked, "costs": [asdict(cost) for cost in costs], "state_errors": carried.state_errors}
        args.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
