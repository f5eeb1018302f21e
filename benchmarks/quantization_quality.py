"""What quantized weights and caches cost: how far logits move, how many tokens stay the same, what perplexity becomes.

    python benchmarks/quantization_quality.py nano --dtype float32 --text data/nano/test/text/en.txt
    python benchmarks/random_checkpoint.py tiny /data/tiny-random
    python benchmarks/quantization_quality.py /data/tiny-random --out tiny.json

Each form is made of the same plain weights and compared with them, on the same tokens: windows of a text, or drawn at
random where none is given, and one answer to a picture, token by token. With a cache in int8 the windows are read token
by token too, so that each token sees all before it through the cache. Random weights are a hard case: their logits
are nearly even, so that the least change puts another token first. The table goes into docs/quantization.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from logit_cost import HEAD, LogitCost, compare_logits, markdown
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vl2.errors import UserError
from vl2.infer.engine.scheduler import ROWS_TOGETHER
from vl2.infer.vlm import VLM, load
from vl2.model.attention import AttentionMask
from vl2.quant.quantize_model import SCHEME_NAMES

CACHE = "int8 cache"
QUESTION = "Describe this picture in detail."


@dataclass(frozen=True, kw_only=True)
class Cost(LogitCost):
    """One form against the plain weights: its logits, and what is made of them."""

    perplexity: float  # of the text
    same_answer: int  # tokens of the answer until the first that differs
    answer: int  # tokens of the plain answer


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a form says."""

    logits_SV: Tensor
    answer: tuple[int, ...]


def windows(vlm: VLM, texts: Sequence[Path], count: int, length: int) -> Tensor:
    """Return token ids [count, length] that begin with the first token of every prompt."""
    vocabulary, first = vlm.model.config.language_config.vocab_size, vlm.processor.tokenizer.bos_id
    needed = count * (length - 1)
    if not texts:
        ids = torch.randint(vocabulary, (needed,), generator=torch.Generator().manual_seed(0))
    else:
        read = [vlm.processor.tokenizer.encode(path.read_text(encoding="utf-8")[: 16 * needed]) for path in texts]
        each = -(-needed // len(texts))
        short = [path for path, found in zip(texts, read, strict=True) if len(found) < each]
        if short:
            raise UserError(f"{short[0]} has too few tokens for {count} windows of {length}")
        ids = torch.tensor([token for found in read for token in found[:each]][:needed])
    return F.pad(ids.view(count, length - 1), (1, 0), value=first)


def read_whole(vlm: VLM, ids_WS: Tensor) -> list[Tensor]:
    """Return the logits [S - 1, V] of each window, read in one pass without a cache."""
    language = vlm.model.language
    positions_1S = torch.arange(ids_WS.shape[1]).unsqueeze(0)
    logits = []
    for ids_S in ids_WS:
        hidden = language.model(language.embed(ids_S.unsqueeze(0)), positions_1S, AttentionMask.of_rows(None))
        logits.append(language.logits(hidden.states_BSD)[0, :-1])
    return logits


def read_token_by_token(vlm: VLM, ids_WS: Tensor) -> list[Tensor]:
    """Return the same, of windows that are decoded together."""
    length, logits = ids_WS.shape[1] - 1, list[Tensor]()
    for ids_BS in ids_WS[:, :length].split(ROWS_TOGETHER):
        count = len(ids_BS)
        with closing(vlm.runner.cache_pool(count, length, count * length)) as pool:
            rows = [pool.take(length) for _ in range(count)]
            steps = [vlm.runner.decode(ids_B.tolist(), rows, count).clone() for ids_B in ids_BS.T]
            logits += torch.stack(steps, dim=1).unbind()
    return logits


@torch.inference_mode()
def look(vlm: VLM, ids_WS: Tensor, num_answer: int, side: int) -> Seen:
    """Read the windows, each by itself, and answer a question about a picture."""
    read = read_whole if vlm.cache == "auto" else read_token_by_token
    logits = read(vlm, ids_WS)
    picture = Image.radial_gradient("L").resize((side, side)).convert("RGB")
    reply = vlm.chat(QUESTION, [picture], max_new_tokens=num_answer)
    return Seen(logits_SV=torch.cat(logits), answer=reply.token_ids)


def compare(form: str, plain: Seen, other: Seen, targets_S: Tensor) -> Cost:
    equal = [a == b for a, b in zip(plain.answer, other.answer, strict=False)]
    return Cost(
        **asdict(compare_logits(form, plain.logits_SV, other.logits_SV)),
        perplexity=F.cross_entropy(other.logits_SV, targets_S).exp().item(),
        same_answer=[*equal, False].index(False),
        answer=len(plain.answer),
    )


def measure(
    model: str, *, dtype: str, texts: Sequence[Path], count: int, length: int, num_answer: int, side: int
) -> list[Cost]:
    """Load every form in turn; the first, plain one is what the others are compared with."""
    vlm = load(model, device="cpu", dtype=dtype)
    ids_WS = windows(vlm, texts, count, length)
    targets_S = ids_WS[:, 1:].flatten()
    plain = look(vlm, ids_WS, num_answer, side)
    own = str(vlm.model.dtype).removeprefix("torch.")
    costs = [compare(own, plain, plain, targets_S)]
    # Rounding to bfloat16 alone moves logits too: the other costs are to be seen beside it.
    forms = [("bfloat16", "auto", "auto")] if own == "float32" else []
    for as_type, weights, cache in [
        *forms, *((own, name, "auto") for name in SCHEME_NAMES), (own, "auto", "int8")
    ]:  # fmt: skip
        del vlm  # two models at once need not fit
        vlm = load(model, device="cpu", dtype=as_type, weights=weights, cache=cache)
        form = CACHE if cache != "auto" else as_type if weights == "auto" else weights
        costs.append(compare(form, plain, look(vlm, ids_WS, num_answer, side), targets_S))
    return costs


def table(costs: Sequence[Cost], has_text: bool) -> str:
    """Return the costs in Markdown."""
    lines = []
    for cost in costs:
        perplexity = [f"{cost.perplexity:.2f}"] if has_text else []
        lines.append([*cost.cells(), *perplexity, f"{cost.same_answer} of {cost.answer}"])
    return markdown([*HEAD, *(["perplexity"] if has_text else []), "answer equal for"], lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help='"nano", a checkpoint folder or a hub id, with plain weights')
    parser.add_argument("--dtype", default="auto", help="of the plain weights")
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="files whose beginnings are read")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--window", type=int, default=128, help="tokens of each")
    parser.add_argument("--answer", type=int, default=32, help="tokens of the answer")
    parser.add_argument("--side", type=int, default=384, help="of the picture, in pixels")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    costs = measure(
        args.model, dtype=args.dtype, texts=args.text, count=args.windows, length=args.window,
        num_answer=args.answer, side=args.side,
    )  # fmt: skip
    print(table(costs, bool(args.text)))
    if args.out is not None:
        args.out.write_text(json.dumps([asdict(cost) for cost in costs], indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
