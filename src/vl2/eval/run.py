"""Run a task: ask every item greedily, in batches, and write each result as soon as it is known.

The answers do not depend on the batch size: each request has its own cache row, and nothing beside it enters its
arithmetic. A run that was killed goes on where it stopped. With several processes (torchrun sets RANK and WORLD_SIZE)
each takes every n-th item; they meet on disk only.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from vl2.errors import UserError
from vl2.eval.progress import Progress
from vl2.eval.results import RESULTS, RunId, Writer, open_run, read_parts, read_results, to_line
from vl2.eval.task import Item, Mark, Result, Task, Way, Where
from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import VLM, Request
from vl2.process.messages import ImageRef, normalise

WINDOW = 4  # batches asked at once: rows that end early are refilled within it
WAIT_S = 1.0  # between two looks for the results of another process

Judge = Callable[[str], str]  # a prompt to a reply


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a task is run."""

    protocol: str | None = None
    limit: int | None = None
    batch_size: int = 8
    max_new_tokens: int | None = None  # instead of the protocol's
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
    """Return (rank, world size) as torchrun sets them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def run_task(vlm: VLM, task: Task, where: Where, folder: Path, options: Options, *, model: str) -> list[Result]:
    """Run a task into a folder and return all its results in order. `model` is the name that the report shows."""
    protocol, way = task.way(options.protocol)
    if options.max_new_tokens is not None:
        way = replace(way, max_new_tokens=options.max_new_tokens)
    ids, digest = scan_items(limited(task, where, options.limit))
    if not ids:
        raise UserError(f"{task.name} has no items in {where.data}")
    run = RunId(
        task=task.name,
        protocol=protocol,
        model=model,
        weights=weights_hash(vlm),
        data=digest,
        limit=options.limit,
        split=where.split,
        max_new_tokens=way.max_new_tokens,
        version=_version(),
    )
    open_run(folder, run)
    if (folder / RESULTS).is_file():
        return read_results(folder)
    mine = set(ids[options.rank :: options.world_size])
    done = read_parts(folder)
    label = f"{task.name} ({protocol})"
    progress = Progress(label, total=len(mine), done_before=len(mine & done.keys()), quiet=options.quiet)
    writer = Writer(folder / f"results.{options.rank}-of-{options.world_size}.jsonl")
    try:
        todo = (item for item in limited(task, where, options.limit) if item.id in mine and item.id not in done)
        for results in ask(vlm, way, todo, batch_size=options.batch_size, judge=options.judge):
            writer.write(results)
            progress.step([r.score for r in results])
    finally:
        writer.close()
    return _join(folder, ids, options)


def limited(task: Task, where: Where, limit: int | None) -> Iterator[Item]:
    """Return the first items of a task; a drawn one has a number of its own by default, and is drawn once."""
    if task.count is not None:
        return iter(_drawn(task, where, task.count if limit is None else limit))
    return islice(task.items(where), limit)


@lru_cache(maxsize=2)
def _drawn(task: Task, where: Where, count: int) -> tuple[Item, ...]:
    return tuple(islice(task.items(where), count))


def ask(
    vlm: VLM, way: Way, items: Iterable[Item], *, batch_size: int, judge: Judge | None = None
) -> Iterator[list[Result]]:
    """Ask items and yield their results, a window of them at a time, in order."""
    asked = prepared(vlm, way, batch_size)
    options = GenerateOptions(max_new_tokens=way.max_new_tokens)
    waiting = iter(items)
    while window := list(islice(waiting, WINDOW * batch_size)):
        conversations = [way.messages(item) for item in window]
        replies = asked.batch([Request(messages=messages, options=options) for messages in conversations])
        results = []
        for item, messages, reply in zip(window, conversations, replies, strict=True):
            mark = judged(way, item, reply.text, judge)
            results.append(
                Result(
                    id=item.id,
                    part=item.part,
                    cluster=item.cluster,
                    prompt=prompt_text(messages),
                    answer=reply.text,
                    read=mark.read,
                    gold=item.gold,
                    score=mark.score,
                    is_undecided=mark.is_undecided,
                    finish_reason=reply.finish_reason,
                    prompt_tokens=reply.usage.prompt_tokens,
                    completion_tokens=reply.usage.completion_tokens,
                )
            )
        yield results


def prepared(vlm: VLM, way: Way, batch_size: int) -> VLM:
    """Return the same model with the tiles and rows that the run wants."""
    processor = vlm.processor
    if way.max_tiles is not None and processor.max_tiles is None:
        processor = processor.with_tiling(processor.tiling, way.max_tiles)
    limits = replace(vlm.limits, max_rows=batch_size)
    return VLM(vlm.model, processor, folder=vlm.folder, limits=limits, is_trained=vlm.is_trained)


def judged(way: Way, item: Item, answer: str, judge: Judge | None) -> Mark:
    """Score an answer by the rules, and by the judge where they cannot and there is one."""
    mark = way.mark(item, answer)
    if not mark.is_undecided or judge is None or way.judge is None:
        return mark
    return way.judge.mark(item, judge(way.judge.prompt(item, answer)))


def prompt_text(messages: Any) -> str:
    """Return a conversation as text, `<image>` where a picture stands."""
    turns = normalise(messages)
    said = ["".join("<image>" if isinstance(p, ImageRef) else p for p in turn.pieces) for turn in turns]
    if len(turns) == 1:
        return said[0]
    return "\n\n".join(f"{turn.role}: {text}" for turn, text in zip(turns, said, strict=True) if text)


def scan_items(items: Iterable[Item]) -> tuple[list[str], str]:
    """Return the ids of items, which must differ, and a hash of what they ask."""
    ids: list[str] = []
    digest = hashlib.sha256()
    for item in items:
        ids.append(item.id)
        digest.update(repr((item.id, item.question, item.options, item.gold)).encode("utf-8", "surrogatepass"))
        for image in item.images:
            digest.update(hashlib.sha256(image).digest() if isinstance(image, bytes) else str(image).encode())
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise UserError(f"two items have the id {twice}: the results could not be told apart")
    return ids, digest.hexdigest()[:16]


def weights_hash(vlm: VLM) -> str:
    """Return a hash of a part of every parameter: another checkpoint gives another one."""
    digest = hashlib.sha256()
    for name, parameter in vlm.model.named_parameters():
        head = parameter.detach().flatten()[:64].float().cpu().numpy().tobytes()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + head)
    return digest.hexdigest()[:16]


def _join(folder: Path, ids: Sequence[str], options: Options) -> list[Result]:
    """Wait for the other processes; the first writes all results in the order of the items."""
    while True:
        done = read_parts(folder)
        if len(done.keys() & set(ids)) == len(ids):
            break
        time.sleep(WAIT_S)
    results = [done[id] for id in ids]
    if options.rank == 0:
        part = folder / f"{RESULTS}.part"
        part.write_bytes(b"".join(to_line(result) for result in results))
        part.replace(folder / RESULTS)
        for path in folder.glob("results.*-of-*.jsonl"):
            path.unlink()
    return results


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vl2")
    except PackageNotFoundError:
        return "0"
