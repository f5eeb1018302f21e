"""`vl2 eval compare`: two runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from vl2.cli.flags import print_json
from vl2.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EvalCompare:
    """Compare two runs of the same tasks item by item: B less A, with a 95 % interval and the p of chance alone.

    Examples:
      vl2 eval compare eval-before/ eval-after/
      vl2 eval compare eval-a/nlvr eval-b/nlvr --json
    """

    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """a folder of runs, or one run"""
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """another, of the same tasks"""
    json: bool = False
    """print JSON instead of lines"""

    def run(self) -> None:
        from vl2.eval.catalogue import find_task
        from vl2.eval.compare import check_same_items, check_same_test, compare
        from vl2.eval.results import find_runs, read_results, read_run
        from vl2.eval.task import mean_score

        runs = [{read_run(folder).task: folder for folder in find_runs(Path(name))} for name in (self.a, self.b)]
        shared = [name for name in runs[0] if name in runs[1]]
        if not shared:
            raise UserError(f"{self.a} and {self.b} have no task in common")
        found: list[dict[str, Any]] = []
        for name in shared:
            task, (id_a, id_b) = find_task(name), [read_run(run[name]) for run in runs]
            check_same_test(id_a, id_b)
            first, second = (read_results(run[name]) for run in runs)
            check_same_items(first, second)
            metric = task.metric_of(id_a.protocol)
            if task.merge is not None:
                metric, first, second = mean_score, task.merge(first), task.merge(second)
            made = compare(
                metric,
                first,
                second,
                scale=task.scale,
                is_mean=task.is_mean,
                is_same_model=(id_a.weights, id_a.arithmetic) == (id_b.weights, id_b.arithmetic),
            )
            found.append(
                {
                    "task": name,
                    "items": made.items,
                    "a": made.figure_a,
                    "b": made.figure_b,
                    "difference": made.difference,
                    "interval": list(made.interval),
                    "p_bootstrap": made.p_bootstrap,
                    "p_mcnemar": made.p_mcnemar,
                    "better_in_b": list(made.better_in_b),
                    "worse_in_b": list(made.worse_in_b),
                }
            )
        if self.json:
            print_json(found)
        else:
            print("\n".join(map(_line, found)))


def _line(c: dict[str, Any]) -> str:
    low, high = c["interval"]
    exact = c["p_mcnemar"]
    tests = f"p {exact:.3g} (McNemar, exact)" if exact is not None else f"p {c['p_bootstrap']:.3g} (bootstrap)"
    return (
        f"{c['task']}: {c['a']:.1f} -> {c['b']:.1f}, {c['difference']:+.1f} [{low:+.1f}, {high:+.1f}], {tests}; "
        f"{len(c['better_in_b'])} better, {len(c['worse_in_b'])} worse of {c['items']}"
    )
