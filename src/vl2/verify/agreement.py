"""Group 7: check that the ways to compute an answer agree on this machine.

A prompt is read whole and in chunks, with and without the KV cache, with and without our kernels, in bfloat16 and in
float32, and by transformers if it has the model. The results are rounded differently, so logits are compared by a
relative distance: the norm of the difference over the norm of the centered logits. Rounding to bfloat16 in every layer
gives a few hundredths, and occasionally more where it routes a token to another expert. A wrong position, mask or
weight gives about 1 at every position. So the verdict rests on the median over several positions in bfloat16, and on
the maximum in float32.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vl2.data.pack import pack_samples
from vl2.errors import UserError
from vl2.infer.image_tokens import embed_prompt
from vl2.infer.prefill import Prefill
from vl2.infer.vlm import VLM
from vl2.kernels import describe_kernels, load_kernels
from vl2.kernels.library import VARIABLE
from vl2.process.conversation import user_turn
from vl2.process.sample import Sample
from vl2.runtime import PlainRunner, Runner
from vl2.verify.check import GROUPS, Check, passed_if
from vl2.verify.subject import Subject

GROUP = GROUPS[6]
FIRST_TOKENS = 16  # answer tokens whose logits are compared
MAX_DISTANCE = 0.2  # allowed median distance below float32: more than rounding gives
MAX_DISTANCE_FLOAT32 = 0.01  # allowed maximum distance in float32
MIN_AGREEMENT = 0.75  # share of equal most likely tokens; a model with rounded rotary angles has 0.5 to 0.7
PASSAGE = (
    "A lighthouse is a tower with a bright light at the top. It stands near the sea and shows ships where the coast "
    "is. In former times a keeper lit a fire every evening; today lamps are electric and switch themselves on. "
    "Name three things that a lighthouse keeper had to do, and say why each of them was important."
)


@dataclass(frozen=True, kw_only=True)
class GreedyAnswer:
    """A greedy answer with its logits and times."""

    ids: tuple[int, ...]
    logits_NV: Tensor  # float32; row i predicts ids[i]
    first_s: float  # image encoding and prefill, until the first logits
    rest_s: float  # decoding


def make_test_sample(vlm: VLM, question: str = "Describe this picture in detail.", num_images: int = 1) -> Sample:
    """Encode a question about a drawn image, which is shown `num_images` times.

    DeepSeek-VL2 reads it in one tile, and the DeepSeek-OCR family in a view of the whole and two crops.
    """
    side = vlm.processor.cutter.tile_px
    image = Image.new("RGB", (side if vlm.processor.kind == "DeepSeek-VL2" else 2 * side, side), "white")
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
    forced_ids: tuple[int, ...] = (),
    runner: Runner | None = None,
) -> GreedyAnswer:
    """Decode `steps` tokens greedily, without caches of earlier requests and without stopping at the end of the answer.

    The first tokens are `forced_ids` if given, not the most likely ones. `runner` replaces the model's own runner.
    """
    runner = runner or vlm.runner
    ids: list[int] = []
    rows: list[Tensor] = []
    window = vlm.model.config.answer_window
    capacity = len(sample.input_ids) + steps
    with closing(runner.cache_pool(1, capacity, max(capacity, vlm.limits.max_context))) as pool:
        start = time.perf_counter()
        row = pool.take(capacity)
        prompt = Prefill(runner, sample, row, opening_id=vlm.processor.tokenizer.opening_id, max_chunk=chunk)
        logits_V = prompt.finish().cpu().clone()
        first_s = time.perf_counter() - start
        while True:
            ids.append(forced_ids[len(ids)] if len(ids) < len(forced_ids) else int(logits_V.argmax()))
            rows.append(logits_V)
            if len(ids) == steps:
                break
            if window is not None:
                row.make_room(len(sample), window)
            logits_V = runner.decode([ids[-1]], [row], 1)[0].cpu().clone()
        rest_s = time.perf_counter() - start - first_s
    return GreedyAnswer(ids=tuple(ids), logits_NV=torch.stack(rows), first_s=first_s, rest_s=rest_s)


@torch.inference_mode()
def logits_without_cache(vlm: VLM, sample: Sample, ids: tuple[int, ...]) -> Tensor:
    """Return the logits that predict each of the ids, float32 [N, V], from one forward pass as in training."""
    answer_ids = torch.tensor(ids[:-1], dtype=torch.int64)
    length = len(sample) + len(answer_ids)
    whole = replace(
        sample,
        input_ids=torch.cat((sample.input_ids, answer_ids)),
        labels=torch.cat((sample.labels, answer_ids)),
        image_mask=torch.cat((sample.image_mask, torch.zeros(len(answer_ids), dtype=torch.bool))),
        answers=((len(sample), length),),
    )
    packed = pack_samples([whole], vlm.processor).to(vlm.model.device)
    states_SD = vlm.model.states(packed).states_BSD[0, len(sample) - 1 :]
    return vlm.model.language.logits(states_SD).cpu()


def distances(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the relative distance between each two rows of logits [N, V]."""
    centered = theirs - theirs.mean(dim=-1, keepdim=True)
    shares: Tensor = (ours - theirs).norm(dim=-1) / centered.norm(dim=-1).clamp(min=1e-9)
    return shares


def check_agreement(vlm: VLM, sample: Sample, whole: GreedyAnswer) -> list[Check]:
    """Compare the logits of an answer with those computed in other ways, after the same tokens."""
    forced_ids = whole.ids[:FIRST_TOKENS]
    chunk = max(1, len(sample.input_ids) // 3)
    ours = whole.logits_NV[: len(forced_ids)]
    chunked = answer_greedily(vlm, sample, len(forced_ids), chunk=chunk, forced_ids=forced_ids)
    checks = [
        _compare_logits(f"prompt whole = in passes of {chunk}", vlm, chunked.logits_NV, ours),
        _compare_logits("cached = read at once, uncached", vlm, ours, logits_without_cache(vlm, sample, forced_ids)),
    ]
    window = vlm.model.config.answer_window
    if window is not None:
        checks.append(_check_window(vlm, sample, window))
    return checks if vlm.model.dtype == torch.float32 else [*checks, _check_kernels(vlm, sample, whole)]


def _check_window(vlm: VLM, sample: Sample, window: int) -> Check:
    """Compare the logits behind the window of Unlimited-OCR, when the beginning of the answer has been forgotten."""
    answer = answer_greedily(vlm, sample, window + FIRST_TOKENS)
    ours, theirs = answer.logits_NV, logits_without_cache(vlm, sample, answer.ids)
    name = f"cached = read at once, behind {window} tokens of answer"
    return _compare_logits(name, vlm, ours[-FIRST_TOKENS:], theirs[-FIRST_TOKENS:])


def _check_kernels(vlm: VLM, sample: Sample, whole: GreedyAnswer) -> Check:
    name, forced_ids = "kernels = plain PyTorch", whole.ids[:FIRST_TOKENS]
    reason = ""
    if vlm.model.device.type != "cpu":
        reason = f"the kernels are for CPUs, and the model is on {vlm.model.device.type}"
    elif load_kernels() is None:
        reason = f"no kernels: {describe_kernels()}"
    if reason:
        return Check(group=GROUP, name=name, verdict="not checked", found=reason)
    with _kernels_disabled():
        plain = answer_greedily(vlm, sample, len(forced_ids), forced_ids=forced_ids, runner=PlainRunner(vlm.model))
    return _compare_logits(name, vlm, whole.logits_NV[: len(forced_ids)], plain.logits_NV)


@contextmanager
def _kernels_disabled() -> Iterator[None]:
    """Disable our CPU kernels. This works at any time, because every call reads the environment variable."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _compare_logits(name: str, vlm: VLM, ours: Tensor, theirs: Tensor) -> Check:
    return _compare_in(vlm.model.dtype, name, ours, theirs)


def _compare_in(dtype: torch.dtype, name: str, ours: Tensor, theirs: Tensor) -> Check:
    far, is_exact = distances(ours, theirs), dtype == torch.float32
    median, largest = float(far.median()), float(far.max())
    is_close = largest <= MAX_DISTANCE_FLOAT32 if is_exact else median <= MAX_DISTANCE
    same = int((ours.argmax(dim=-1) == theirs.argmax(dim=-1)).sum())
    allowed = f"the largest may be {MAX_DISTANCE_FLOAT32}" if is_exact else f"the median may be {MAX_DISTANCE}"
    found = (
        f"logits at {len(far)} positions are {median:.2g} (median) to {largest:.2g} apart, {allowed}; "
        f"the likeliest token is the same at {same} of them"
    )
    name = f"{name}, {str(dtype).removeprefix('torch.')}"
    # NaN fails both comparisons, so it fails the check.
    return Check(group=GROUP, name=name, verdict=passed_if(is_close), found=found)


@torch.inference_mode()
def passage_logits(vlm: VLM) -> Tensor:
    """Return the logits at each position of a text that follows three images, float32 [S, V].

    The positions are so large that bfloat16 can represent only every eighth, so rounded rotary angles show.
    """
    model, sample = vlm.runner.model, make_test_sample(vlm, PASSAGE, num_images=3)
    embeds_1SD = embed_prompt(vlm.runner, sample)
    first = int(sample.image_mask.nonzero().max()) + 1
    length = len(sample.input_ids)
    with closing(vlm.runner.cache_pool(1, length, max(length, vlm.limits.max_context))) as pool:
        states_1SD = model.language.extend(embeds_1SD, pool.take(length))
        return model.language.logits(states_1SD[0, first:]).cpu().clone()


def compare_types(lower_SV: Tensor, exact_SV: Tensor, dtype: str) -> Check:
    """Compare the logits of a type with those of float32 along a text."""
    share = float((lower_SV.argmax(dim=-1) == exact_SV.argmax(dim=-1)).double().mean())
    median = float(distances(lower_SV, exact_SV).median())
    found = (
        f"the likeliest token is the same at {share:.1%} of {len(exact_SV)} positions of a text after three images "
        f"({MIN_AGREEMENT:.0%} needed); logits are {median:.2g} (median) apart, {MAX_DISTANCE} is allowed"
    )
    is_close = share >= MIN_AGREEMENT and median <= MAX_DISTANCE
    return Check(group=GROUP, name=f"{dtype} = float32", verdict=passed_if(is_close), found=found)


def check_transformers(subject: Subject, sample: Sample, whole: GreedyAnswer, image_id: int) -> Check:
    """Compare the float32 logits of an answer with those of transformers' own class of the model.

    Call it after the model has been freed, since transformers loads it again.
    """
    name, config = "vl2 = transformers", subject.config
    assert config is not None
    if importlib.util.find_spec("transformers") is None:
        reason = "transformers is not installed (it comes with the extra hf)"
        return Check(group=GROUP, name=name, verdict="not checked", found=reason)
    # Imported here because it is an extra, and takes seconds.
    from vl2.hf.peer_classes import missing_classes, open_in_transformers, peer_logits

    if (missing := missing_classes(config.kind)) is not None:
        return Check(group=GROUP, name=name, verdict="not checked", found=missing)
    num_ids = min(FIRST_TOKENS, config.answer_window or FIRST_TOKENS)
    try:
        model = open_in_transformers(config, subject.folder, image_id)
    except UserError as error:
        return Check(group=GROUP, name=name, verdict="fail", found=str(error))
    logits_NV = peer_logits(model, sample, whole.ids[:num_ids])
    return _compare_in(torch.float32, name, whole.logits_NV[:num_ids], logits_NV)
