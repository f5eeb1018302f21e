"""Map a function over items in processes here or on a Ray cluster, with the same results in the same order."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, Literal, TypeVar, get_args

from vl2.errors import UserError
from vl2.optional_imports import install_extra

MapBackend = Literal["local", "ray"]
Item = TypeVar("Item")
Result = TypeVar("Result")

WINDOW = 4096  # items sent to the cluster at once; a larger window starts up less often but uses more memory


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    on: MapBackend = "local",
    window: int = WINDOW,
    *,
    processes: int = 1,
    ahead: int = 0,
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order.

    With more than one of `processes`, the function and the items are pickled and sent to new processes here: `ahead`
    items before their results are asked for, at least two for each process. With "ray" they are sent to the cluster at
    RAY_ADDRESS, or to one started on this machine. `function` must depend on its item alone. Its exceptions are raised
    here.
    """
    if on not in get_args(MapBackend):
        raise UserError(f"on must be one of {', '.join(get_args(MapBackend))}, got {on!r}")
    if on == "ray":
        return _ray_map(function, items, window)
    if processes <= 1:
        return map(function, items)
    return _process_map(function, items, processes, max(ahead, 2 * processes))


def _process_map(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int, ahead: int
) -> Iterator[Result]:
    # Processes are spawned, because forking a process whose libraries run threads can hang.
    # The function is sent once to each, because it may hold much, such as a list of all records of a store.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_set_function, initargs=(function,))
    remaining, waiting = iter(items), deque[Future[Result]]()
    try:
        for item in islice(remaining, ahead):
            waiting.append(pool.submit(_call_function, item))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(_call_function, item) for item in islice(remaining, 1))
    except BrokenProcessPool:
        why = "too little memory, or a main program that cannot be imported"
        raise UserError(f"a process ended abruptly: {why}") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_function: Callable[[Any], Any]  # of a process of `_process_map`


def _set_function(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    # Ctrl-C reaches all processes of a terminal. The main one ends these when it has done what it wants to.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _call_function(item: Any) -> Any:
    return _function(item)


def _ray_map(function: Callable[[Item], Result], items: Iterable[Item], window: int) -> Iterator[Result]:
    ray_data = _import_ray_data()
    remaining = iter(items)
    while batch := list(islice(remaining, window)):
        rows = ray_data.from_items([{"item": pickle.dumps(item)} for item in batch])
        yield from (pickle.loads(row["result"]) for row in rows.map(_PickledCall(function)).iter_rows())


class _PickledCall:
    """Applies a function to a pickled item. Arrow alone would turn tuples into lists and refuse objects."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        return {"result": pickle.dumps(self._function(pickle.loads(row["item"])))}


def _import_ray_data() -> Any:
    try:
        import ray  # type: ignore[import-untyped, import-not-found, unused-ignore]
        import ray.data  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        raise UserError(f"running on Ray needs it installed: {install_extra('ray')}") from None
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        ray.init(address=address, include_dashboard=None if address else False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray.data
