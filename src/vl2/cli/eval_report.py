"""`vl2 eval report`: write the reports of finished runs again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from vl2.cli.eval_flags import DataSourceFlags
from vl2.cli.flags import print_json


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """Write the reports of finished runs again, without a model. Give the same --data for the pictures.

    Examples:
      vl2 eval report eval/ --data benchmarks/
      vl2 eval report eval/ --json
    """

    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """a folder of runs, or one run"""
    source: DataSourceFlags = field(default_factory=DataSourceFlags)
    json: bool = False
    """print the figures as JSON"""

    def run(self) -> None:
        from vl2.eval.catalogue import TASKS
        from vl2.eval.report import write_reports

        written = write_reports(Path(self.out), TASKS, self.source.data_source())
        if self.json:
            print_json([report.to_dict() for report in written])
        else:
            print("\n".join(report.line() for report in written))
