"""Run all checks of a checkpoint: first those that read no weights, then the weights, then a loaded model."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vl2.bench.protocol import Unsupported, peak_bytes
from vl2.checkpoint.machine_memory import MachineMemory, parse_bytes
from vl2.checkpoint.memory_plan import MemoryPlan
from vl2.checkpoint.policy import AS_STORED
from vl2.errors import UserError
from vl2.infer.prefill import Reuse
from vl2.infer.sequence import Limits
from vl2.infer.vlm import VLM, choose_device, choose_dtype, load
from vl2.process.conversation import Turn
from vl2.process.image import RELEASED_OPTIONS
from vl2.process.messages import released_prompt
from vl2.process.sample import Sample
from vl2.verify import agreement, samples, weight_health
from vl2.verify.check import GROUPS, MAX_LISTED, Check, number_of
from vl2.verify.config_files import check_config, check_file_list, check_index, read_headers
from vl2.verify.issue_page import Page, Redactor
from vl2.verify.machine_facts import describe_machine
from vl2.verify.processor_settings import check_processor
from vl2.verify.samples import Pictures
from vl2.verify.subject import Subject
from vl2.verify.tensors import check_tensors
from vl2.verify.tokens import check_tokens

CONTEXT = 3072  # enough for the longest published prompt and its answer
STEPS = 32  # tokens decoded to measure the speed
COMPARED_POSITIONS = 500  # upper bound of the rows of logits in a comparison
PUBLISHED_DTYPE = "bfloat16"

ReportProgress = Callable[[str], None]
ProgressBar = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """The checkpoint to verify, and the options of `vl2 verify`."""

    target: str  # as the user typed it
    folder: Path
    device: str = "auto"
    weights: str = AS_STORED
    memory: str | None = None
    quick: bool = False  # skip all checks that read weights
    pictures: Pictures
    pictures_folder: Path | None = None

    @property
    def dtype(self) -> str:
        """Return the type of the published samples, or the one that this device uses instead."""
        chosen = choose_dtype("auto", choose_device(self.device))
        return PUBLISHED_DTYPE if chosen is None else str(chosen).removeprefix("torch.")


def verify(
    options: VerifyOptions, say: ReportProgress = lambda text: None, progress: ProgressBar | None = None
) -> Page:
    """Run all checks that apply, and return the report without private names."""
    subject = Subject.of(options.target, options.folder, needs_weights=not options.quick)
    tensors, faults = read_headers(subject)

    def check_files() -> list[Check]:
        return [check_config(subject), check_file_list(subject), check_index(subject, tensors, faults)]

    checks: list[Check] = []
    for group, work in zip(
        GROUPS,
        (
            check_files,
            lambda: check_tensors(subject, tensors),
            lambda: check_tokens(subject),
            lambda: check_processor(subject),
        ),
        strict=False,
    ):
        say(group)
        checks += _catch_errors(group, work)
    held = ""
    if options.quick or not tensors:
        reason = "left out by --quick" if options.quick else "there are no weights that can be read"
        checks += _all_not_checked(reason, GROUPS[4:])
    else:
        say(GROUPS[4])
        checks += _catch_errors(GROUPS[4], lambda: weight_health.check_weights(tensors, progress))
        broken = [check for check in checks if check.verdict == "fail" and check.group in (*GROUPS[:2], GROUPS[4])]
        if broken:
            reason = f"the files are not those of a model that works (see {broken[0].name})"
            checks += _all_not_checked(reason, GROUPS[5:])
        else:
            run = _ModelChecks(options=options, subject=subject, say=say)
            checks += _catch_errors(GROUPS[6], run.checks)
            held = run.held
    page = Page(
        label=subject.label,
        size=subject.size,
        held=held,
        checks=tuple(checks),
        machine=describe_machine(choose_device(options.device)),
    )
    known = {options.folder: subject.label}
    if options.pictures_folder is not None:
        known[options.pictures_folder] = "the pictures folder"
    return page.cleaned(Redactor.of_this_machine(known))


def _catch_errors(group: str, work: Callable[[], list[Check]]) -> list[Check]:
    """Run checks. An unexpected error becomes a failed check, so that the results of other checks are not lost."""
    try:
        return work()
    except Exception as error:
        lines = tuple(line for text in traceback.format_exception(error) for line in text.splitlines())
        found = f"ended by {type(error).__name__}: {error}"
        return [Check(group=group, name="run", verdict="fail", found=found, details=lines[-MAX_LISTED:])]


def _all_not_checked(reason: str, groups: tuple[str, ...]) -> list[Check]:
    return [Check(group=group, name="all of it", verdict="not checked", found=reason) for group in groups]


@dataclass(kw_only=True)
class _ModelChecks:
    """The checks of groups 6 to 8, which need a loaded model."""

    options: VerifyOptions
    subject: Subject
    say: ReportProgress
    held: str = ""  # type of the weights in memory; set when the model is loaded

    def checks(self) -> list[Check]:
        options, subject = self.options, self.subject
        if (short := _memory_shortage(options, subject)) is not None:
            return _all_not_checked(short, GROUPS[5:])
        # Get the images before loading the model, so that a missing image is reported early.
        wanted = [
            (sample, samples.pictures_of(sample, options.pictures)) for sample in samples.samples_of(subject.size)
        ]
        self.say("loading the model")
        start = time.perf_counter()
        try:
            vlm = _load(options, options.dtype)
        except UserError as error:
            failed = Check(group=GROUPS[6], name="load", verdict="fail", found=f"the model cannot be loaded: {error}")
            return [failed, *_all_not_checked("the model cannot be loaded", (GROUPS[5], GROUPS[7]))]
        load_s = time.perf_counter() - start
        held, dtype = vlm.weights, str(vlm.model.dtype).removeprefix("torch.")
        self.held = held if held == dtype else f"{held}, the rest in {dtype}"
        self.say(GROUPS[7])
        own = agreement.make_test_sample(vlm)
        cold = agreement.answer_greedily(vlm, own, 1)
        whole = agreement.answer_greedily(vlm, own, STEPS)
        self.say(GROUPS[5])
        asked = [
            found if isinstance(found, Check) else samples.check_answer(sample, _ask(vlm, sample, found), weights=held)
            for sample, found in wanted
        ]
        if not asked:
            is_vl2 = subject.kind == "DeepSeek-VL2"
            reason = "samples of tiny and small only" if is_vl2 else f"no answers of {subject.kind}"
            asked = _all_not_checked(f"the publisher prints {reason}", GROUPS[5:6])
        self.say(GROUPS[6])
        agreeing = agreement.check_agreement(vlm, own, whole)
        speed = _speed(load_s, cold, whole, own)
        lower_SV = agreement.passage_logits(vlm)
        del vlm  # free its memory before the model is loaded again in float32
        gc.collect()
        agreeing += _compare_with_float32(options, subject, lower_SV, held=held, dtype=dtype, say=self.say)
        return [*asked, *agreeing, *speed]


def _load(options: VerifyOptions, dtype: str) -> VLM:
    vlm = load(
        options.folder,
        device=options.device,
        dtype=dtype,
        weights=options.weights,
        memory=options.memory,
        image_options=RELEASED_OPTIONS,
        limits=Limits(max_context=CONTEXT),
        reuse=Reuse(encoder_bytes=0, prefix_bytes=0),
    )
    own = vlm.model.config.language_config.max_position_embeddings
    vlm.limits = replace(vlm.limits, max_context=min(CONTEXT, own))
    return vlm


def _ask(vlm: VLM, sample: samples.PublishedSample, pictures: list[bytes]) -> str:
    limits, vlm.limits = vlm.limits, replace(vlm.limits, prefill_chunk=sample.prefill_chunk)
    try:
        turn = Turn(role="user", pieces=released_prompt(sample.prompt, pictures), is_released=True)
        return vlm.generate([turn], max_new_tokens=samples.ANSWER_TOKENS).text
    except UserError as error:
        return f"(no answer: {error})"
    finally:
        vlm.limits = limits


def _memory_shortage(options: VerifyOptions, subject: Subject, dtype: str | None = None) -> str | None:
    """Say how much memory is missing, or return None if the model fits."""
    device = choose_device(options.device)
    if device.type == "mps" or subject.config is None:  # MPS does not report its memory
        return None
    quantization = subject.quantization
    form = (
        options.weights
        if options.weights != AS_STORED
        else dtype or (quantization.weights if quantization else options.dtype)
    )
    planned = MemoryPlan.of(subject.config, quantization.scheme if quantization else form, CONTEXT, reuse=0)
    # A comparison holds the float32 logits of all positions twice.
    logits = 2 * 4 * COMPARED_POSITIONS * subject.config.language_config.vocab_size
    needed = (planned.least if quantization and device.type == "cpu" else planned.total) + logits
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = parse_bytes(options.memory) if options.memory is not None else MachineMemory.now().available
    if needed <= free:
        return None
    where = "free" if options.memory is None else "allowed"
    shortage = f"needs {needed / 1e9:.2f} GB of memory in {form}, and {free / 1e9:.2f} GB are {where}"
    smallest = MemoryPlan.of(subject.config, "int4", CONTEXT, reuse=0).total + logits
    if quantization is None and form != "int4" and dtype is None:
        shortage += f"; with --weights int4 it needs {smallest / 1e9:.2f} GB"
    return shortage


def _speed(load_s: float, cold: agreement.GreedyAnswer, whole: agreement.GreedyAnswer, own: Sample) -> list[Check]:
    """Report the speed and the peak memory, without a verdict."""
    image = "an image of one tile" if own.num_views == 1 else f"an image in {own.num_views} views"
    try:
        peak = f"{peak_bytes() / 1e9:.2f} GB"
    except Unsupported as reason:
        peak = str(reason)
    figures = {
        "load": f"{load_s:.1f} s",
        "first token": f"{cold.first_s:.2f} s the first time, {whole.first_s:.2f} s the second, "
        f"of a prompt of {len(own)} tokens with {image}",
        "decoding": f"{(len(whole.ids) - 1) / whole.rest_s:.1f} tokens/s over {number_of(len(whole.ids) - 1, 'token')}",
        "peak memory": peak,
    }
    return [Check(group=GROUPS[7], name=name, verdict="measured", found=found) for name, found in figures.items()]


def _compare_with_float32(
    options: VerifyOptions, subject: Subject, lower_SV: torch.Tensor, *, held: str, dtype: str, say: ReportProgress
) -> list[Check]:
    """Load the model again in float32, compare it with the lower type, and repeat the agreement checks exactly."""
    reason = None
    if held != dtype:
        reason = f"the weights are held in {held}: what that costs is measured in docs/quantization.md"
    else:
        reason = _memory_shortage(options, subject, "float32")
    if reason is not None:
        return [Check(group=GROUPS[6], name=f"{held} = float32", verdict="not checked", found=reason)]
    say("loading the model in float32")
    vlm = _load(options, "float32")
    own = agreement.make_test_sample(vlm)
    whole = agreement.answer_greedily(vlm, own, agreement.FIRST_TOKENS)
    exact_SV = agreement.passage_logits(vlm)
    checks = [agreement.compare_types(lower_SV, exact_SV, dtype), *agreement.check_agreement(vlm, own, whole)]
    image_id = vlm.processor.tokenizer.image_id
    if subject.kind != "DeepSeek-VL2":  # transformers has no class of it
        del vlm
        gc.collect()
        say("loading the model in transformers")
        checks.append(agreement.check_transformers(subject, own, whole, image_id))
    return checks
