"""What a rank does and says when another one is lost: it has died, or hangs."""

from __future__ import annotations

from pathlib import Path

from vl2.errors import RankLost
from vl2.train.checkpoint import Checkpoints, newest_checkpoint
from vl2.train.ranks import Ranks, why_lost

LAST_WRITE_S = 10.0  # for a checkpoint that is being written then; torchrun kills after 30


def rank_lost(error: BaseException, ranks: Ranks, folder: Path, checkpoints: Checkpoints | None) -> RankLost | None:
    """Return what to raise for an error that came of another rank's loss, None for any other error.

    What waits for the lost rank is given up. `folder` is the run's, `checkpoints` those that it writes.
    """
    why = why_lost(error)
    if why is None:
        return None
    if checkpoints is not None:
        checkpoints.give_up(LAST_WRITE_S)
    newest = newest_checkpoint(folder)
    how = "there is no checkpoint yet, so start again from the beginning"
    if newest is not None:
        how = f"the last checkpoint is {newest}: go on with --resume, on as many ranks or on others"
    return RankLost(f"rank {ranks.rank} of {ranks.size}: {why}; {how}")
