"""How uneven the tiles of data-parallel ranks are, as dealt and balanced, and what the balance costs in bytes.

    python benchmarks/tile_balance.py
    python benchmarks/tile_balance.py --profile stats.json --packs 10 --ranks 8 64 336

Draws steps of packs of 4,096 tokens from a mixture of 70 : 30 (or from what `vl2 data stats --json` says of one's own
data), deals them to simulated ranks, and counts the tiles of the busiest rank over the mean: dealt at random, dealt by
the loader, which knows every pack's tiles, and balanced by moving tiles, so many packs at a time. The counts are what
`balance_tiles` of a recipe does; no process is started. About a minute on one core.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from vl2.config import preset
from vl2.data.pack import Packing, balance
from vl2.plan.cluster import DataProfile
from vl2.train.parallel.tile_balance import even_counts, imbalance

BYTES = 2  # of bfloat16


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of ranks and of packs that are balanced together; means over the steps."""

    ranks: int
    packs_together: int
    mean_tiles: float  # of a rank, of so many packs
    random: float
    dealt: float
    balanced: float
    worst_balanced: float
    sent_mb: float  # by the busiest rank, pixels and tokens, forward and backward, in a step
    sent_share: float  # of all tiles, those that move


def measure(
    profile: DataProfile, size: str, num_ranks: int, packs_per_rank: int, together: int, num_steps: int, seed: int
) -> Row:
    config, random = preset(size), np.random.default_rng(seed)
    tile_bytes = BYTES * 3 * config.vision_config.image_size**2
    token_bytes = BYTES * config.tokens_per_side**2 * config.projector_config.n_embed
    found = []
    for step in range(num_steps):
        tokens, tiles = profile.draw_packs(config, Packing(), num_ranks * packs_per_rank, seed + step)
        at_random = random.permutation(tiles)[: len(tiles) // num_ranks * num_ranks].reshape(num_ranks, -1)
        dealt = balance(tiles.tolist(), tokens.tolist(), num_ranks)
        held = groups([[int(tiles[pack]) for pack in rank] for rank in dealt], together)
        even = [even_counts(counts) for counts in held]
        moved = [np.array(before) - np.array(after) for before, after in zip(held, even, strict=True)]
        out, back = ([np.clip(sign * m, 0, None) for m in moved] for sign in (1, -1))
        # A rank that gives tiles sends pixels there and gradients back; one that takes them sends tokens.
        sent = sum(out) * (tile_bytes + token_bytes) + sum(back) * token_bytes
        found.append(
            (
                float(np.mean(held)),
                imbalance(groups(at_random.tolist(), together)),
                imbalance(held),
                imbalance(even),
                float(np.max(sent)) / 1e6,
                float(sum(map(np.sum, out)) / tiles.sum()),
            )
        )
    values = np.array(found)
    mean, at_random_, dealt_, balanced, sent_mb, share = values.mean(axis=0).tolist()
    return Row(
        ranks=num_ranks,
        packs_together=together,
        mean_tiles=mean,
        random=at_random_,
        dealt=dealt_,
        balanced=balanced,
        worst_balanced=float(values[:, 3].max()),
        sent_mb=sent_mb,
        sent_share=share,
    )


def groups(tiles: list[list[int]], together: int) -> list[list[int]]:
    """Return the tiles of every rank for each group of so many of its packs."""
    most = max(map(len, tiles))
    return [[sum(rank[first : first + together]) for rank in tiles] for first in range(0, most, together)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, help="JSON of vl2 data stats")
    parser.add_argument("--size", default="base", choices=("tiny", "small", "base"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 336])
    parser.add_argument("--packs", type=int, default=10, help="of a rank in a step; the paper's base has 3,360 / 336")
    parser.add_argument("--together", type=int, nargs="+", default=[1, 5, 10])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    args = parser.parse_args()
    profile = DataProfile.read(args.profile) if args.profile else DataProfile.common()
    rows = [
        measure(profile, args.size, ranks, args.packs, together, args.steps, args.seed)
        for ranks in args.ranks
        for together in args.together
    ]
    names = ("ranks", "packs together", "tiles a rank", "random", "dealt", "balanced", "worst", "sent, MB", "moved")
    table = Table(*names)
    for row in rows:
        table.add_row(
            str(row.ranks),
            str(row.packs_together),
            f"{row.mean_tiles:.1f}",
            f"{row.random:.3f}",
            f"{row.dealt:.3f}",
            f"{row.balanced:.3f}",
            f"{row.worst_balanced:.3f}",
            f"{row.sent_mb:.1f}",
            f"{row.sent_share:.1%}",
        )
    Console(width=110).print(table)
    if args.out:
        args.out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
