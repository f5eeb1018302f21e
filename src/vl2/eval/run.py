"""Run a task: ask every item, write each result as soon as it is known, join and judge them at the end.

In float32 the answers do not depend on the batch size: each request has its own cache row, and nothing beside it enters
its arithmetic. In bfloat16 the rounding of a product depends on its rows, and a near tie can fall the other way.

A run that was killed goes on where it stopped. With several processes (torchrun sets RANK and WORLD_SIZE) each takes
every n-th item; they meet on disk only.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

from vl2.checkpoint.model_size import count_parameters
from vl2.errors import UserError
from vl2.eval import sample
from vl2.eval.answering import answers, prepared
from vl2.eval.held_out import HELD_OUT_SEED
from vl2.eval.judge import Judge, judged
from vl2.eval.progress import EvalProgress
from vl2.eval.published import released_size
from vl2.eval.results import RESULTS, RunId, Writer, open_run, read_parts, read_results, record_judge, write_results
from vl2.eval.score import SCORER_VERSION
from vl2.eval.task import DataSource, Item, LeftOut, Protocol, Result, Task
from vl2.infer.vlm import VLM
from vl2.process.tiling import Tiling

Items = Callable[[], Iterator[Item]]

WAIT_S = 1.0  # between two looks for the results of another process
HASHED = 64  # numbers of each weight that make the hash


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


def run_task(vlm: VLM, task: Task, source: DataSource, folder: Path, options: Options, *, model: str) -> list[Result]:
    """Run a task into a folder. `model` is the name that the report shows.

    The first process returns all results in order, another one those that are known when its own are done.
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
    open_run(folder, _identify(vlm, protocol, chosen, options, protocol_name=name, data=digest, model=model))
    if not (folder / RESULTS).is_file():
        label = f"{task.name} ({name})"
        _answer(vlm, protocol, chosen.items, ids, folder, options, label=label)
    if options.rank == 0 and options.judge is not None and protocol.judge is not None:
        _judge(protocol, chosen.items(), folder, options.judge)
    return read_results(folder) if options.rank == 0 else list(read_parts(folder).values())


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The items that a run asks, of those that the data have."""

    task: Task
    source: DataSource
    limit: int | None
    ids: frozenset[str] | None  # those that the limit takes; None: all
    available: int | None  # items that there would be without the limit; None where they are drawn without end
    left_out: Mapping[LeftOut, int]

    def items(self) -> Iterator[Item]:
        """Yield the items in the order of the data."""
        if self.task.count is not None:
            return iter(_drawn(self.task, self.source, self.limit or self.task.count))
        return (item for item in self.task.items(self.source) if self.ids is None or item.id in self.ids)

    @property
    def is_subset(self) -> bool:
        """Tell whether items are missing that the benchmark's figure is of."""
        return self.ids is not None or any(not why.is_of_other_split for why in self.left_out)

    @property
    def seed(self) -> int | None:
        if self.task.count is not None:
            return HELD_OUT_SEED
        return sample.SEED if self.ids is not None else None

    def about_left_out(self) -> str:
        """Return a clause that says what was left out, or nothing."""
        if not self.left_out:
            return ""
        flag = " (--whole asks all that can be asked)" if any(why.comes_with_whole for why in self.left_out) else ""
        return f"; left out: {left_out_text({why.why: n for why, n in self.left_out.items()})}{flag}"

    def tell(self) -> None:
        """Print to stderr what is not asked."""
        if self.ids is not None:
            print(f"{self.task.name}: asks {len(self.ids)} of {self.available} items, a sample spread over all parts",
                  file=sys.stderr)  # fmt: skip
        if self.left_out:
            print(f"{self.task.name}{self.about_left_out().replace('; ', ': ', 1)}", file=sys.stderr)


def left_out_text(left_out: Mapping[str, int]) -> str:
    """Return how many items were left out and why, in words."""
    return ", ".join(f"{count} {'item' if count == 1 else 'items'} {why}" for why, count in left_out.items())


def check_whole(task: Task, source: DataSource) -> None:
    """Raise UserError where all of the data are asked for and a task keeps nothing back."""
    if source.whole and not task.has_whole:
        raise UserError(f"{task.name} keeps no items for training, so --whole would change nothing: leave it out")


def choose(task: Task, source: DataSource, limit: int | None) -> Chosen:
    """Read a task's data once and choose the items of a run. The same data and limit give the same items."""
    if task.count is not None:
        return Chosen(task=task, source=source, limit=limit, ids=None, available=None, left_out={})
    keys: list[sample.Key] = []
    left_out: Counter[LeftOut] = Counter()
    for found in task.read(task, source):
        if isinstance(found, LeftOut):
            left_out[found] += 1
        else:
            keys.append(sample.Key.of(found))
    ids = None
    if limit is not None and limit < len(keys):
        ids = sample.sample(keys, limit, keeps_clusters=task.keeps_clusters)
    return Chosen(task=task, source=source, limit=limit, ids=ids, available=len(keys), left_out=left_out)


def limited(task: Task, source: DataSource, limit: int | None) -> Iterator[Item]:
    """Return the items of a run with a limit; a drawn task has a number of its own by default, and is drawn once."""
    return choose(task, source, limit).items()


def first_item(task: Task, source: DataSource) -> Item | None:
    """Return the first item of the data, None where there is none."""
    return next(iter(_drawn(task, source, 1)) if task.count is not None else task.items(source), None)


@lru_cache(maxsize=2)
def _drawn(task: Task, source: DataSource, count: int) -> tuple[Item, ...]:
    return tuple(islice(task.items(source), count))


def scan_items(items: Iterable[Item]) -> tuple[list[str], str]:
    """Return the ids of items, which must differ, and a hash of what they ask."""
    ids: list[str] = []
    digest = hashlib.sha256()
    for item in items:
        ids.append(item.id)
        digest.update(repr((item.id, item.question, item.options, item.gold)).encode("utf-8", "surrogatepass"))
        for image in item.images:
            digest.update(hashlib.sha256(image).digest() if isinstance(image, bytes) else _named(image, item.id))
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise UserError(f"two items have the id {twice}: the results could not be told apart")
    return ids, digest.hexdigest()[:16]


def _named(image: object, id: str) -> bytes:
    """Return name and size of a picture's file: the same data in another folder are the same data."""
    path = Path(str(image))
    if not path.is_file():
        raise UserError(f"the picture of {id} is not there: {path}")
    return f"{path.name} {path.stat().st_size}".encode("utf-8", "surrogateescape")


def weights_hash(vlm: VLM) -> str:
    """Return a hash of a part of every weight: another checkpoint gives another one."""
    digest = hashlib.sha256()
    for name, weight in vlm.model.state_dict().items():
        flat = weight.detach().flatten()
        part = flat[:: max(1, len(flat) // HASHED)][:HASHED].double().cpu().numpy().tobytes()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + part)
    return digest.hexdigest()[:16]


def _identify(
    vlm: VLM, protocol: Protocol, chosen: Chosen, options: Options, *, protocol_name: str, data: str, model: str
) -> RunId:
    processor = prepared(vlm, protocol, options.batch_size).processor
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
        tiling=tiling_text(processor.tiling, processor.max_tiles),
        arithmetic=_arithmetic(vlm),
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


def tiling_text(tiling: Tiling, max_tiles: int | None) -> str:
    """Return how pictures are cut, as a run's id has it."""
    return f"{tiling}" if max_tiles is None else f"{tiling}, up to {max_tiles} tiles"


def _arithmetic(vlm: VLM) -> str:
    dtype = str(vlm.model.dtype).removeprefix("torch.")
    held = "" if vlm.weights == dtype else f", weights in {vlm.weights}"
    return f"{dtype} on {vlm.model.device.type}{held}"


def _answer(
    vlm: VLM, protocol: Protocol, items: Items, ids: Sequence[str], folder: Path, options: Options, *, label: str
) -> None:
    """Ask what is not done yet; the first process then waits for the others and joins all results."""
    mine = set(ids[options.rank :: options.world_size])
    done = read_parts(folder).keys()
    progress = EvalProgress(label, total=len(mine), done_before=len(mine & done), quiet=options.quiet)
    writer = Writer(folder / f"results.{options.rank}-of-{options.world_size}.jsonl")
    try:
        todo = (item for item in items() if item.id in mine and item.id not in done)
        for result in answers(vlm, protocol, todo, batch_size=options.batch_size):
            writer.write([result])
            progress.step([result.score])
    finally:
        writer.close()
    if options.rank == 0:
        _join(folder, ids)


def _join(folder: Path, ids: Sequence[str]) -> None:
    while len((done := read_parts(folder)).keys() & set(ids)) < len(ids):
        time.sleep(WAIT_S)
    write_results(folder, (done[id] for id in ids))
    for path in folder.glob("results.*-of-*.jsonl"):
        path.unlink()


def _judge(protocol: Protocol, items: Iterable[Item], folder: Path, judge: Judge) -> None:
    """Let the judge read the answers that the rules left open; what it has read is kept if it stops half-way."""
    assert protocol.judge is not None
    results = {result.id: result for result in read_results(folder)}
    undecided = [result for result in results.values() if result.is_undecided]
    if not undecided:
        return
    wanted = {result.id for result in undecided}
    asked = [item for item in items if item.id in wanted]
    for some in judged(protocol.judge, asked, undecided, judge):
        record_judge(folder, judge.name)
        results.update({result.id: result for result in some})
        write_results(folder, results.values())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vl2")
    except PackageNotFoundError:
        return "0"
