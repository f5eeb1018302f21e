"""`vl2 eval list`: the tasks there are."""

from __future__ import annotations

from dataclasses import dataclass

from vl2.cli.flags import print_json


@dataclass(frozen=True, kw_only=True)
class EvalList:
    """List the tasks with their protocols.

    Examples:
      vl2 eval list
      vl2 eval list --json
    """

    json: bool = False
    """print JSON instead of lines"""

    def run(self) -> None:
        from vl2.eval.catalogue import TASKS

        if self.json:
            print_json(
                [
                    {"name": t.name, "title": t.title, "protocols": list(t.protocols), "layout": t.layout}
                    for t in TASKS.values()
                ]
            )
            return
        for task in TASKS.values():
            print(f"{task.name:18} {task.title} [{', '.join(task.protocols)}]")
