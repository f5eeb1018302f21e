"""Run a task: ask the items in batches, score and save each answer as soon as it is complete, then run the judge.

In float32 answers do not depend on the batch size, because each request has its own cache row. In bfloat16 the rounding
of a matrix product depends on its number of rows, which can flip a near tie between tokens.

A killed run can be resumed. With several processes (torchrun sets RANK and WORLD_SIZE) each takes every n-th item; they
communicate through files only.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from vl2.checkpoint.model_size import count_parameters
from vl2.errors import UserError
from vl2.eval.choose_items import ChosenItems, check_whole, choose, scan_items
from vl2.eval.judge import Judge, judge_results
from vl2.eval.published import released_size
from vl2.eval.results import (
    IMAGE_SCALE,
    RESULTS,
    ResultLog,
    RunId,
    open_run,
    read_parts,
    read_results,
    record_judge,
    write_results,
)
from vl2.eval.score import SCORER_VERSION
from vl2.eval.task import REFUSED, DataSource, Item, Protocol, Result, Task
from vl2.infer.generate import generate
from vl2.infer.reply import Reply
from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import VLM, ReplyBuilder
from vl2.process.conversation import ImageRef, Turn, arrange
from vl2.process.sample import Sample
from vl2.process.tiling import Tiling
from vl2.progress import LINE_EVERY_S, ProgressDisplay, format_time

WINDOW = 4  # batches encoded at once; a row that finishes early is refilled from the window


def answers(vlm: VLM, protocol: Protocol, items: Iterable[Item], *, batch_size: int) -> Iterator[Result]:
    """Yield one result per item as soon as its answer is complete; the order within a window of items varies."""
    asked = apply_protocol(vlm, protocol, batch_size)
    options = GenerateOptions(max_new_tokens=protocol.max_new_tokens)
    waiting = iter(items)
    while window := list(islice(waiting, WINDOW * batch_size)):
        samples: list[Sample] = []
        sampled: list[Item] = []
        for item in window:
            try:
                sample = asked.processor.encode(protocol.ask(item), name=item.id)
                if len(sample.input_ids) >= asked.limits.max_context:
                    raise UserError(
                        f"the prompt has {len(sample.input_ids)} tokens, the context is {asked.limits.max_context}"
                    )
            except UserError as error:
                yield refused_result(protocol, item, str(error))
            else:
                samples.append(sample)
                sampled.append(item)
        for index, reply in _replies(asked, samples, options):
            yield score_reply(protocol, sampled[index], reply)


def _replies(vlm: VLM, samples: list[Sample], options: GenerateOptions) -> Iterator[tuple[int, Reply]]:
    builders = [ReplyBuilder(sample, vlm.processor.kind) for sample in samples]
    tokenizer = vlm.processor.tokenizer
    for event in generate(vlm.runner, tokenizer, samples, [options] * len(samples), limits=vlm.limits):
        builders[event.request].add(event)
        if event.finish_reason is not None:
            yield event.request, builders[event.request].build()


def apply_protocol(vlm: VLM, protocol: Protocol, batch_size: int) -> VLM:
    """Return the same model with the batch size, and the protocol's number of tiles if that is more than its own."""
    processor = vlm.processor
    own_tiles = processor.cutter.most_views - 1  # without the overview
    if protocol.max_tiles is not None and processor.max_tiles is None and protocol.max_tiles > own_tiles:
        processor = processor.with_tiling(processor.tiling, protocol.max_tiles)
    limits = replace(vlm.limits, max_num_seqs=batch_size)
    return VLM(vlm.model, processor, folder=vlm.folder, limits=limits, runner=vlm.runner)


def score_reply(protocol: Protocol, item: Item, reply: Reply) -> Result:
    score = protocol.score(item, reply.text)
    return Result(
        id=item.id,
        part=item.part,
        cluster=item.cluster,
        prompt=prompt_text(protocol.ask(item)),
        answer=reply.text,
        read=score.read,
        gold=item.gold,
        score=score.value,
        is_undecided=score.is_undecided,
        finish_reason=reply.finish_reason,
        prompt_tokens=reply.usage.prompt_tokens,
        completion_tokens=reply.usage.completion_tokens,
        measures=score.measures,
    )


def refused_result(protocol: Protocol, item: Item, why: str) -> Result:
    """Return the result of an item that cannot be asked. It counts as wrong, so that it does not end a long run."""
    return Result(
        id=item.id,
        part=item.part,
        cluster=item.cluster,
        prompt=item.question,
        answer="",
        read=why,
        gold=item.gold,
        score=0.0,
        is_undecided=False,
        finish_reason=REFUSED,
        prompt_tokens=0,
        completion_tokens=0,
    )


def prompt_text(conversation: Sequence[Turn]) -> str:
    """Return a conversation as text, with `<image>` in place of images."""
    turns = arrange(conversation)
    said = ["".join("<image>" if isinstance(p, ImageRef) else p for p in turn.pieces) for turn in turns]
    if len(turns) == 1:
        return said[0]
    return "\n\n".join(f"{turn.role}: {text}" for turn, text in zip(turns, said, strict=True) if text)


Items = Callable[[], Iterator[Item]]

WAIT_S = 1.0  # polling interval for the results of other processes
HASHED = 64  # values of each weight that enter the hash


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """The options of a run."""

    protocol: str | None = None
    limit: int | None = None
    batch_size: int = 8
    max_new_tokens: int | None = None  # overrides the protocol's
    judge: Judge | None = None
    quiet: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        for name in ("limit", "batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")


def ranks_of_environment() -> tuple[int, int]:
    """Return (rank, world size) from the environment variables that torchrun sets."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def run_task(
    vlm: VLM, task: Task, source: DataSource, folder: Path, options: EvalOptions, *, model: str
) -> list[Result]:
    """Run a task, or resume it, with its results in a folder. `model` is the model's name in the report.

    Rank 0 returns all results in order; other ranks return the results known when they finish. Raise UserError if the
    task has no items or the folder holds another run.
    """
    name, protocol = task.protocol(options.protocol)
    if options.max_new_tokens is not None:
        protocol = replace(protocol, max_new_tokens=options.max_new_tokens)
    check_whole(task, source)
    chosen = choose(task, source, options.limit)
    ids, digest = scan_items(chosen.items())
    if not ids:
        raise UserError(f"{task.name} has no items in {source.data}{chosen.about_left_out()}")
    if options.rank == 0 and not options.quiet:
        chosen.tell()
    open_run(folder, _run_identity(vlm, protocol, chosen, options, protocol_name=name, data=digest, model=model))
    if not (folder / RESULTS).is_file():
        label = f"{task.name} ({name})"
        _answer_items(vlm, protocol, chosen.items, ids, folder, options, label=label)
    if options.rank == 0 and options.judge is not None and protocol.judge is not None:
        _judge(protocol, chosen.items(), folder, options.judge)
    return read_results(folder) if options.rank == 0 else list(read_parts(folder).values())


def weights_hash(vlm: VLM) -> str:
    """Return a hash of a sample of every weight, to distinguish checkpoints."""
    digest = hashlib.sha256()
    for name, weight in vlm.model.state_dict().items():
        flat = weight.detach().flatten()
        part = flat[:: max(1, len(flat) // HASHED)][:HASHED].double().cpu().numpy().tobytes()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + part)
    return digest.hexdigest()[:16]


def _run_identity(
    vlm: VLM,
    protocol: Protocol,
    chosen: ChosenItems,
    options: EvalOptions,
    *,
    protocol_name: str,
    data: str,
    model: str,
) -> RunId:
    processor = apply_protocol(vlm, protocol, options.batch_size).processor
    judge = options.judge if protocol.judge is not None else None
    return RunId(
        task=chosen.task.name,
        protocol=protocol_name,
        model=model,
        weights=weights_hash(vlm),
        data=data,
        limit=options.limit,
        split=chosen.source.split,
        max_new_tokens=protocol.max_new_tokens,
        tiling=tiling_text(processor.tiling, processor.max_tiles, processor.config.image_scale),
        arithmetic=_arithmetic_text(vlm),
        parameters=count_parameters(vlm.model.config),
        judge=judge.name if judge is not None else None,
        version=_version(),
        size=released_size(vlm.model.config),
        scorer=SCORER_VERSION,
        seed=chosen.seed,
        available=chosen.available,
        whole=chosen.source.whole,
        left_out={why.why: count for why, count in sorted(chosen.left_out.items(), key=lambda pair: pair[0].why)},
        is_subset=chosen.is_subset,
    )


def tiling_text(tiling: Tiling, max_tiles: int | None, image_scale: float = 1.0) -> str:
    """Return the tiling settings as text for the run's id."""
    tiles = "" if max_tiles is None else f", up to {max_tiles} tiles"
    scale = "" if image_scale == 1 else f"{IMAGE_SCALE}{image_scale}"
    return f"{tiling}{tiles}{scale}"


def _arithmetic_text(vlm: VLM) -> str:
    dtype = str(vlm.model.dtype).removeprefix("torch.")
    held = "" if vlm.weights == dtype else f", weights in {vlm.weights}"
    cached = "" if vlm.cache == "auto" else f", cache in {vlm.cache}"
    return f"{dtype} on {vlm.model.device.type}{held}{cached}"


def _answer_items(
    vlm: VLM, protocol: Protocol, items: Items, ids: Sequence[str], folder: Path, options: EvalOptions, *, label: str
) -> None:
    """Ask the items that are not done yet. Rank 0 then waits for the other ranks and joins all results."""
    mine = set(ids[options.rank :: options.world_size])
    done = read_parts(folder)
    log = ResultLog(folder / f"results.{options.rank}-of-{options.world_size}.jsonl")
    before = [done[id].score for id in mine & done.keys()]
    progress = EvalProgress(label, total=len(mine), scores_before=before, quiet=options.quiet)
    with log, progress:
        todo = (item for item in items() if item.id in mine and item.id not in done)
        for result in answers(vlm, protocol, todo, batch_size=options.batch_size):
            log.append(asdict(result))
            progress.step([result.score])
    if options.rank == 0:
        _join(folder, ids)


def _join(folder: Path, ids: Sequence[str]) -> None:
    while len((done := read_parts(folder)).keys() & set(ids)) < len(ids):
        time.sleep(WAIT_S)
    write_results(folder, (done[id] for id in ids))
    for path in folder.glob("results.*-of-*.jsonl"):
        path.unlink()


def _judge(protocol: Protocol, items: Iterable[Item], folder: Path, judge: Judge) -> None:
    """Let the judge score the undecided answers. Its scores are saved batch by batch, in case it fails."""
    assert protocol.judge is not None
    results = {result.id: result for result in read_results(folder)}
    undecided = [result for result in results.values() if result.is_undecided]
    if not undecided:
        return
    wanted = {result.id for result in undecided}
    asked = [item for item in items if item.id in wanted]
    for some in judge_results(protocol.judge, asked, undecided, judge):
        record_judge(folder, judge.name)
        results.update({result.id: result for result in some})
        write_results(folder, results.values())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vl2")
    except PackageNotFoundError:
        return "0"


class EvalProgress(ProgressDisplay):
    """A progress display that counts items and shows their mean score, those of earlier runs included."""

    def __init__(
        self,
        name: str,
        *,
        total: int,
        scores_before: Sequence[float],
        quiet: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(total, done_before=len(scores_before), quiet=quiet, is_kept=True, clock=clock)
        self._name = name
        self._points = sum(scores_before)

    def step(self, scores: list[float]) -> None:
        self.done += len(scores)
        self._points += sum(scores)
        line_every_s = 0.0 if self.done == self.total else LINE_EVERY_S
        self.show(f"{self._name}, {self._mean()}", line=self.line(), line_every_s=line_every_s)

    def line(self) -> str:
        """Return a line with the items done, the mean score and the time left, or at the end the time taken."""
        rest = format_time(self.elapsed_s) if self.done == self.total else self.time_left()
        return f"{self._name}: {self.done} of {self.total}, {self._mean()}, {rest}"

    def _mean(self) -> str:
        return f"score {100 * self._points / self.done:.1f}"
