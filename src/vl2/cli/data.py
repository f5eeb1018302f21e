"""The command group `vl2 data`, which makes, checks and shows training records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from vl2.cli.data_build import DataBuild
from vl2.cli.data_checks import DataStats, DataValidate
from vl2.cli.data_filter import DataFilter
from vl2.cli.data_job import DataJob
from vl2.cli.data_preview import DataPreview
from vl2.cli.data_sets import DataConvert, DataFetch

DATA_COMMANDS = {
    "build": DataBuild,
    "convert": DataConvert,
    "filter": DataFilter,
    "job": DataJob,
    "fetch": DataFetch,
    "validate": DataValidate,
    "preview": DataPreview,
    "stats": DataStats,
}


@dataclass(frozen=True, kw_only=True)
class Data:
    """Make, check, see and count training records. Formats: Parquet, WebDataset tar and JSONL; docs/record.md.

    Examples:
      vl2 data fetch noto openmoji --to assets
      vl2 data build receipt receipts.parquet --count 1000
      vl2 data build recipes/data/pretraining.toml --to stage
      vl2 data convert llava ./llava llava.tar --shard-records 5000
      vl2 data filter llava-*.tar --out clean --filter damaged --filter duplicate_image
      vl2 data validate train.jsonl
      vl2 data preview shards/ --count 40 --out look.html
      vl2 data stats "s3://bucket/set-*.parquet" --plots plots/

    `vl2 data COMMAND --help` says more.
    """

    command: (
        Annotated[DataBuild, tyro.conf.subcommand("build")]
        | Annotated[DataConvert, tyro.conf.subcommand("convert")]
        | Annotated[DataFilter, tyro.conf.subcommand("filter")]
        | Annotated[DataJob, tyro.conf.subcommand("job")]
        | Annotated[DataFetch, tyro.conf.subcommand("fetch")]
        | Annotated[DataValidate, tyro.conf.subcommand("validate")]
        | Annotated[DataPreview, tyro.conf.subcommand("preview")]
        | Annotated[DataStats, tyro.conf.subcommand("stats")]
    )

    def run(self) -> None:
        self.command.run()
