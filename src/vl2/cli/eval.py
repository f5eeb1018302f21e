"""`vl2 eval`: the commands that measure a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from vl2.cli.eval_compare import EvalCompare
from vl2.cli.eval_list import EvalList
from vl2.cli.eval_report import EvalReport
from vl2.cli.eval_run import EvalRun
from vl2.cli.eval_show import EvalShow

EVAL_COMMANDS = {
    "run": EvalRun,
    "list": EvalList,
    "show": EvalShow,
    "compare": EvalCompare,
    "report": EvalReport,
}


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure a model: the paper's benchmarks from local files, and tests drawn on the spot. See docs/evaluation.md.

    Examples:
      vl2 eval list
      vl2 eval show docvqa
      vl2 eval run count_objects presence --out eval/
      vl2 eval run docvqa chartqa --data benchmarks/ --model ./deepseek-vl2-tiny --out eval/
      vl2 eval compare eval-before/ eval-after/

    `vl2 eval COMMAND --help` says more.
    """

    command: (
        Annotated[EvalRun, tyro.conf.subcommand("run")]
        | Annotated[EvalList, tyro.conf.subcommand("list")]
        | Annotated[EvalShow, tyro.conf.subcommand("show")]
        | Annotated[EvalCompare, tyro.conf.subcommand("compare")]
        | Annotated[EvalReport, tyro.conf.subcommand("report")]
    )

    def run(self) -> None:
        self.command.run()
