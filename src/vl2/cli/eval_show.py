"""`vl2 eval show`: how a task asks, and how it reads and scores an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from vl2.cli.eval_flags import DataSourceFlags
from vl2.cli.flags import OptionalText


@dataclass(frozen=True, kw_only=True)
class EvalShow:
    """Show the exact prompts of a task, and how the answer is read and scored. With data, of its first item.

    Examples:
      vl2 eval show count_objects
      vl2 eval show mmmu --protocol vlmevalkit --data benchmarks/
      vl2 eval show chartqa --data benchmarks/ --answer "14 %"
    """

    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK")]
    """a task; `vl2 eval list` shows them"""
    protocol: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """only this one: paper, vlmevalkit, lmms-eval"""
    answer: OptionalText = None
    """show how this answer to it is read and scored"""
    source: DataSourceFlags = field(default_factory=DataSourceFlags)

    def run(self) -> None:
        from vl2.eval.catalogue import describe, find_task

        task = find_task(self.task)
        if self.protocol is not None:
            task.protocol(self.protocol)
        print(describe(task, self.source.data_source(), only=self.protocol, answer=self.answer))
