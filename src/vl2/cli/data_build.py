"""The command `vl2 data build`, which generates records of a synthetic source, or builds a stage from a recipe."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vl2.cli.flags import CheckpointFlags, Number, OptionalFolder, OptionalInt, OutputFlags, load_processor, print_json
from vl2.errors import UserError

if TYPE_CHECKING:
    from vl2.data.ray_map import MapBackend
    from vl2.process.processor import Processor
    from vl2.synth.source import GenerationTally


@dataclass(frozen=True, kw_only=True)
class DataBuild:
    """Draw training records: receipts, tables, charts, scenes and more. The same seed draws the same records.

    Given a recipe, a TOML file, it builds all sources of a stage: TO/CATEGORY/NAME-00000.parquet. A source that is
    there is left as it is, so it goes on after a stop. Without arguments it lists the sources and their settings.

    Examples:
      vl2 data build receipt receipts.parquet --count 1000
      vl2 data build text_image ocr.tar --count 50000 --shard-records 5000 --set texts_zh=passages.txt
      vl2 data build recipes/data/pretraining.toml --to stage
      vl2 data build scene scenes.jsonl --count 200 --seed 7 --set tasks=ground,count
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE", help_behavior_hint="")] = ""
    """what to draw, or a recipe that ends in .toml"""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT", help_behavior_hint="")] = ""
    """where to write; .parquet, .tar or .jsonl"""
    to: OptionalFolder = None
    """of a recipe: the folder of the stage"""
    count: Number = 100
    """how many records to draw"""
    seed: Number = 0
    processes: OptionalInt = None
    """all cores by default; their number changes nothing but the time"""
    settings: Annotated[
        tuple[str, ...], tyro.conf.arg(name="set", metavar="NAME=VALUE"), tyro.conf.UseAppendAction
    ] = ()
    """a setting of the source; several values with commas between"""
    shard_records: OptionalInt = None
    """so many records to a file, with numbers in the names"""
    allow_builtin_texts: bool = False
    """draw more than 1,000 pictures from the few built-in sentences or tables, which teaches reciting"""
    ray: bool = False
    """draw and filter on the Ray cluster of RAY_ADDRESS, or one of this machine; the records are the same"""
    model: CheckpointFlags = field(default_factory=CheckpointFlags)
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        from vl2.data.setting_values import settings_of
        from vl2.synth.catalog import SOURCES

        if not self.source:
            for name, kind in SOURCES.items():
                print(f"{name:14} {kind.category:22} {', '.join(settings_of(kind))}")
        elif self.source.endswith(".toml"):
            self._build_stage()
        else:
            self._draw()

    def _draw(self) -> None:
        from vl2.data.setting_values import split_setting
        from vl2.data.store import write_records
        from vl2.data.store.access import check_writable
        from vl2.synth.builtin_inputs import check_inputs
        from vl2.synth.catalog import make_source
        from vl2.synth.source import GenerationTally, generate

        if self.to is not None:
            raise UserError("--to is for a recipe: a single source is written to OUT")
        source = make_source(self.source, dict(map(split_setting, self.settings)))
        if not self.out:
            raise UserError("say where to write the records: OUT, ending in .parquet, .tar or .jsonl")
        check_inputs(source, self.count, allow=self.allow_builtin_texts)
        check_writable(self.out, shard_records=self.shard_records)
        tally = GenerationTally()
        progress = sys.stderr.isatty() and not self.output.quiet
        drawn = generate(
            source, self.count, self.seed, self._processes(), tally=tally, progress=progress, on=self._where()
        )
        files = write_records(drawn, self.out, shard_records=self.shard_records)
        self._report(files, tally)

    def _build_stage(self) -> None:
        from vl2.curate.stage_build import BuildOptions, build_stage
        from vl2.curate.stage_recipe import check_recipe_inputs, read_recipe

        if self.out or self.settings or self.shard_records is not None:
            raise UserError("a recipe holds the settings of its sources: give the folder with --to, nothing else")
        recipe = read_recipe(self.source)
        if self.to is None:
            raise UserError("say where the stage goes: --to FOLDER")
        if not self.allow_builtin_texts:
            check_recipe_inputs(recipe, self.source)
        reports = []
        how = BuildOptions(processes=self._processes(), on=self._where())
        for report in build_stage(recipe, Path(self.to), load=self._load, how=how):
            reports.append(report.to_dict())
            if not self.output.quiet and not self.output.json:
                dropped = "".join(f"; {count} dropped: {why}" for why, count in sorted(report.dropped.items()))
                there = " (there already)" if report.is_reused else ""
                print(f"vl2: {report.name}: {report.kept} records{there}{dropped}", file=sys.stderr)
        if self.output.json:
            print_json({"folder": self.to, "sources": reports})

    def _processes(self) -> int:
        return self.processes or os.cpu_count() or 1

    def _where(self) -> MapBackend:
        return "ray" if self.ray else "local"

    def _load(self) -> Processor:
        return load_processor(self.model, quiet=self.output.quiet)

    def _report(self, files: list[str], tally: GenerationTally) -> None:
        if self.output.json:
            print_json({"files": files, "made": tally.made, "dropped": tally.dropped})
        elif not self.output.quiet:
            dropped = "".join(f"; {count} dropped: {why}" for why, count in sorted(tally.dropped.items()))
            print(f"vl2: {tally.made} records in {', '.join(files)}{dropped}", file=sys.stderr)
