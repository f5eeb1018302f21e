"""Group 7: whether the ways to an answer agree on this machine: whole and in chunks, with the cache and without, with
kernels and without, in bfloat16 and float32.

Two ways round differently, so logits are compared by how far apart they are: the norm of the difference over the norm
of the logits, less their mean. Rounding to bfloat16 in every layer gives some hundredths, now and then more where it
sends a token to another expert; a wrong position, mask or weight gives about 1, and everywhere. So the median over
several positions decides in bfloat16, and the largest in float32.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vl2.infer.image_tokens import embed_prompt
from vl2.infer.prefill import Prefill
from vl2.infer.vlm import VLM
from vl2.kernels import describe_kernels, load_kernels
from vl2.kernels.library import VARIABLE
from vl2.process.conversation import user_turn
from vl2.process.sample import Sample, collate
from vl2.runtime import PlainRunner, Runner
from vl2.verify.check import GROUPS, Check, passed_if

GROUP = GROUPS[6]
FIRST_TOKENS = 16
FAR = 0.2  # of the logits' norm, as a median: what rounding to fewer bits explains, with room
FAR_EXACT = 0.01  # at most, in float32
LEAST_AGREEMENT = 0.75  # of likeliest tokens: models whose rotary angles are rounded have 0.5 to 0.7
PASSAGE = (
    "A lighthouse is a tower with a bright light at the top. It stands near the sea and shows ships where the coast "
    "is. In former times a keeper lit a fire every evening; today lamps are electric and switch themselves on. "
    "Name three things that a lighthouse keeper had to do, and say why each of them was important."
)


@dataclass(frozen=True, kw_only=True)
class Greedy:
    """One greedy answer, and how long it took."""

    ids: tuple[int, ...]
    logits_NV: Tensor  # float32, before each of the ids
    first_s: float  # encoding the image, reading the prompt, the first logits
    rest_s: float


def own_sample(vlm: VLM, question: str = "Describe this picture in detail.", num_images: int = 1) -> Sample:
    """Return a question about a picture that is drawn here, of one tile, as often as said."""
    side = vlm.processor.config.tile_px
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((side // 8, side // 8, side // 2, side // 2), fill="red")
    draw.ellipse((side // 2, side // 2, side - side // 8, side - side // 8), fill="blue")
    return vlm.processor.encode([user_turn(question, [image] * num_images)])


@torch.inference_mode()
def answer_greedily(
    vlm: VLM,
    sample: Sample,
    steps: int,
    *,
    chunk: int | None = None,
    said: tuple[int, ...] = (),
    runner: Runner | None = None,
) -> Greedy:
    """Return the likeliest tokens after a prompt, whether or not the answer would have ended. Reuses nothing.

    Where `said` goes, they are appended in place of the likeliest. `runner` takes the place of the model's own.
    """
    runner = runner or vlm.runner
    ids: list[int] = []
    rows: list[Tensor] = []
    capacity = len(sample.input_ids) + steps
    with closing(runner.cache_pool(1, capacity, max(capacity, vlm.limits.max_context))) as pool:
        start = time.perf_counter()
        row = pool.take(capacity)
        prompt = Prefill(runner, sample, row, opening_id=vlm.processor.tokenizer.opening_id, max_chunk=chunk)
        logits_V = prompt.finish().cpu().clone()
        first_s = time.perf_counter() - start
        while True:
            ids.append(said[len(ids)] if len(ids) < len(said) else int(logits_V.argmax()))
            rows.append(logits_V)
            if len(ids) == steps:
                break
            logits_V = runner.decode([ids[-1]], [row], 1)[0].cpu().clone()
        rest_s = time.perf_counter() - start - first_s
    return Greedy(ids=tuple(ids), logits_NV=torch.stack(rows), first_s=first_s, rest_s=rest_s)


@torch.inference_mode()
def read_at_once(vlm: VLM, sample: Sample, ids: tuple[int, ...]) -> Tensor:
    """Return the logits before each of the ids, float32 [N, V], of prompt and answer read at once without a cache."""
    said = torch.tensor(ids[:-1], dtype=torch.int64)
    whole = replace(
        sample,
        input_ids=torch.cat((sample.input_ids, said)),
        labels=torch.cat((sample.labels, said)),
        image_mask=torch.cat((sample.image_mask, torch.zeros(len(said), dtype=torch.bool))),
    )
    logits_SV: Tensor = vlm.model(collate([whole]).to(vlm.model.device)).logits[0]
    return logits_SV[len(sample.input_ids) - 1 :].cpu()


def distances(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return how far each row of logits is from the other's, as a share."""
    centered = theirs - theirs.mean(dim=-1, keepdim=True)
    shares: Tensor = (ours - theirs).norm(dim=-1) / centered.norm(dim=-1).clamp(min=1e-9)
    return shares


def check_agreement(vlm: VLM, sample: Sample, whole: Greedy) -> list[Check]:
    """Compare what a loaded model answers with what it answers in other ways, all of them after the same tokens."""
    said = whole.ids[:FIRST_TOKENS]
    chunk = max(1, len(sample.input_ids) // 3)
    ours = whole.logits_NV[: len(said)]
    chunked = answer_greedily(vlm, sample, len(said), chunk=chunk, said=said)
    checks = [
        _compared(f"prompt whole = in passes of {chunk}", vlm, chunked.logits_NV, ours),
        _compared("cached = read at once, uncached", vlm, ours, read_at_once(vlm, sample, said)),
    ]
    return checks if vlm.model.dtype == torch.float32 else [*checks, _check_kernels(vlm, sample, whole)]


def _check_kernels(vlm: VLM, sample: Sample, whole: Greedy) -> Check:
    name, said = "kernels = plain PyTorch", whole.ids[:FIRST_TOKENS]
    reason = ""
    if vlm.model.device.type != "cpu":
        reason = f"the kernels are for CPUs, and the model is on {vlm.model.device.type}"
    elif load_kernels() is None:
        reason = f"no kernels: {describe_kernels()}"
    if reason:
        return Check(group=GROUP, name=name, verdict="not checked", found=reason)
    with without_kernels():
        plain = answer_greedily(vlm, sample, len(said), said=said, runner=PlainRunner(vlm.model))
    return _compared(name, vlm, whole.logits_NV[: len(said)], plain.logits_NV)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Let PyTorch do all the work: the variable is read anew by every call."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _compared(name: str, vlm: VLM, ours: Tensor, theirs: Tensor) -> Check:
    far = distances(ours, theirs)
    dtype = str(vlm.model.dtype).removeprefix("torch.")
    is_exact = vlm.model.dtype == torch.float32
    middle, largest = float(far.median()), float(far.max())
    is_near = largest <= FAR_EXACT if is_exact else middle <= FAR
    same = int((ours.argmax(dim=-1) == theirs.argmax(dim=-1)).sum())
    allowed = f"the largest may be {FAR_EXACT}" if is_exact else f"the median may be {FAR}"
    found = (
        f"logits at {len(far)} positions are {middle:.2g} (median) to {largest:.2g} apart, {allowed}; "
        f"the likeliest token is the same at {same} of them"
    )
    # Not a number is never near.
    return Check(group=GROUP, name=f"{name}, {dtype}", verdict=passed_if(is_near), found=found)


@torch.inference_mode()
def passage_logits(vlm: VLM) -> Tensor:
    """Return the logits along a text that follows three images, float32 [S, V].

    So far from the start that rounded positions show: bfloat16 has a number for every eighth of them there.
    """
    model, sample = vlm.runner.model, own_sample(vlm, PASSAGE, num_images=3)
    embeds_1SD = embed_prompt(vlm.runner, sample)
    first = int(sample.image_mask.nonzero().max()) + 1
    length = len(sample.input_ids)
    with closing(vlm.runner.cache_pool(1, length, max(length, vlm.limits.max_context))) as pool:
        states_1SD = model.language.extend(embeds_1SD, pool.take(length))
        return model.language.logits(states_1SD[0, first:]).cpu().clone()


def compare_types(lower_SV: Tensor, exact_SV: Tensor, dtype: str) -> Check:
    """Compare a type with float32 along a text."""
    share = float((lower_SV.argmax(dim=-1) == exact_SV.argmax(dim=-1)).double().mean())
    middle = float(distances(lower_SV, exact_SV).median())
    found = (
        f"the likeliest token is the same at {share:.1%} of {len(exact_SV)} positions of a text after three images "
        f"({LEAST_AGREEMENT:.0%} needed); logits are {middle:.2g} (median) apart, {FAR} is allowed"
    )
    is_near = share >= LEAST_AGREEMENT and middle <= FAR
    return Check(group=GROUP, name=f"{dtype} = float32", verdict=passed_if(is_near), found=found)
