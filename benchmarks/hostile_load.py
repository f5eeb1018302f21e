"""Attacks on `vl2 serve` by one client, and what another notices of them: on the built-in model, with default settings.

    python benchmarks/hostile_load.py
    python benchmarks/hostile_load.py --only "PNG of 40 MP" --repeat 3

Under each attack of tests/serve/attacks.py `/health` must answer within 1 s and a chat without pictures within 5 s, the
memory of the server's processes may grow by 1 GB, and must come back. What a first attack leaves may be in caches; then
a second one is measured. Exit code 1 where any of this is not so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.serve.attacks import ATTACKS, SOURCE, Effect, attack, left_by, served

HEALTH_S, CHAT_S, GROWTH_BYTES, LEFT_BYTES = 1.0, 5.0, 1_000_000_000, 150 << 20


def faults(effect: Effect, left_bytes: int) -> list[str]:
    found = list(effect.failures[:2])
    found += ["/health"] if max(effect.health_s) > HEALTH_S else []
    found += ["chat"] if max(effect.chat_s, default=0.0) > CHAT_S else []
    found += ["memory"] if effect.growth_bytes > GROWTH_BYTES else []
    found += ["memory stays"] if left_bytes > LEFT_BYTES else []
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--only", nargs="*", default=[""], help="attacks whose names hold one of these, or of these groups"
    )
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--source", type=Path, default=SOURCE, help="the folder that holds the package to be served")
    arguments = parser.parse_args()
    chosen = [each for each in ATTACKS if any(word in each.name or word == each.group for word in arguments.only)]
    has_faults = False
    print(
        "| attack | answers | s | /health, worst s | chat, worst s | memory, + MB | left, MB | |",
        "|---|---|---|---|---|---|---|---|",
        sep="\n",
    )
    for each in chosen:
        for _ in range(arguments.repeat):
            with served(source=arguments.source) as (process, url):
                effect = attack(url, process.pid, each)
                left_bytes = left_by(url, process.pid, each, effect, LEFT_BYTES)
            found = faults(effect, left_bytes)
            has_faults |= bool(found)
            answers = ", ".join(f"{count} x {status}" for status, count in sorted(effect.statuses.items()))
            cells = [
                each.name,
                answers,
                f"{effect.took_s:.1f}",
                f"{max(effect.health_s):.2f}",
                f"{max(effect.chat_s, default=0.0):.2f}",
                f"{effect.growth_bytes / 1e6:.0f}",
                f"{left_bytes / 1e6:.0f}",
                ", ".join(found),
            ]
            print(f"| {' | '.join(cells)} |", flush=True)
    raise SystemExit(has_faults)


if __name__ == "__main__":
    main()
