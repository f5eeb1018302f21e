"""Commands that answer, in several processes that torchrun has started: the first runs the command, the others help.

The other processes hold a part of the model's experts and print nothing, unless the first one is lost without a word.
Signals are for the first process, which lets the others end. This module imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from vl2.errors import RankLost, UserError

if TYPE_CHECKING:
    from vl2.cli.flags import ModelFlags
    from vl2.cli.parse import Command
    from vl2.expert_parallel.leader import Leader
    from vl2.train.ranks import Ranks

# After an error that every rank has, the others wait so long for torchrun to end them, so that the first can print it.
WAIT_FOR_FIRST_S = 30.0
_leader: Leader | None = None  # of this process, while a command runs over ranks


def leader() -> Leader | None:
    """Return what loads and runs the model over several processes, or None if there is one process."""
    return _leader


def is_for_ranks(command: Command) -> bool:
    """Return whether a command answers with one model. Others, such as training, divide their work themselves."""
    from vl2.cli.ask import Ask, Describe
    from vl2.cli.batch import Batch
    from vl2.cli.chat import Chat
    from vl2.cli.extract import Extract
    from vl2.cli.locate import Locate
    from vl2.cli.read import Read
    from vl2.cli.serve import Serve

    return isinstance(command, Ask | Describe | Batch | Chat | Extract | Locate | Read | Serve)


@contextlib.contextmanager
def only_first_speaks() -> Iterator[None]:
    """Let errors be printed by the first process only. The others wait to be ended after an error."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as null:
        try:
            with contextlib.redirect_stderr(null), contextlib.redirect_stdout(null):
                yield
        except (UserError, SystemExit):
            time.sleep(WAIT_FOR_FIRST_S)
            sys.exit(1)


def run_over_ranks(command: Command) -> None:
    """Run a command on the first rank, and help it on the others. Raise UserError if the processes cannot work."""
    from vl2.train.ranks import leave

    flags: ModelFlags = command.model  # type: ignore[attr-defined]  # the commands of is_for_ranks have it
    with only_first_speaks():
        ranks = _join(flags.device)
    if not ranks.is_first:
        _follow(ranks)
    try:
        _lead(command, ranks)
    except RankLost:
        raise  # leaving the group might wait for the lost rank forever
    except BaseException:
        leave()
        raise
    leave()


def _join(device: str) -> Ranks:
    from vl2.train.ranks import find_device, join

    # All ranks look for the device of the last process on their machine, so that all refuse what one would.
    find_device(device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)
    return join(device)


def _lead(command: Command, ranks: Ranks) -> None:
    global _leader
    from vl2.expert_parallel.leader import Leader

    _leader = Leader(ranks)
    try:
        command.run()
    finally:
        _leader.stop()
        _leader = None


def _follow(ranks: Ranks) -> NoReturn:
    from vl2.expert_parallel.follower import follow
    from vl2.train.ranks import why_lost

    signals = list[int]()

    def note(number: int, frame: FrameType | None) -> None:
        signals.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    code = 0
    try:
        follow(ranks)
    except RankLost:
        code = 1  # the first rank has the same message and prints it
    except Exception as error:
        why = why_lost(error)
        if why is None:
            raise
        code = 1
        # After a signal the first process may have ended without telling the others. Otherwise someone has to say it.
        if not signals and ranks.rank == 1:
            print(f"vl2: rank {ranks.rank} of {ranks.size}: {why}", file=sys.stderr, flush=True)
    sys.stderr.flush()
    os._exit(code)
