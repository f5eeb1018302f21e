"""The command `vl2 extract`, which fills a JSON schema from documents."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from vl2.cli.answer import check_file
from vl2.cli.batch import BatchFlags
from vl2.cli.flags import ModelFlags, OptionalText, check_answer_length
from vl2.errors import UserError
from vl2.files import local_path
from vl2.progress import ProgressDisplay


@dataclass(frozen=True, kw_only=True)
class Extract:
    """Fill a JSON schema, or a Pydantic class, from documents: one valid object for each, and where its values stand.

    The output has one JSON line per document with "value" and "places", or with "error"; -o with .csv or .parquet
    writes a table besides. Answers that are cut off are asked for again. Stopped, the same command goes on.

    Examples:
      vl2 extract receipt.schema.json receipts/ -o receipts.jsonl --model tiny
      vl2 extract invoice.schema.json invoices/*.pdf -o invoices.csv --model tiny
      python -m vl2 extract my_forms:Receipt receipt.png --model tiny
    """

    schema: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SCHEMA")]
    """file with a JSON schema, or module:Class of a Pydantic class"""
    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """images, PDF files, or folders of them; a PDF file is one document"""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"], metavar="OUT", help_behavior_hint="")] = None
    """file.jsonl, or a table: file.csv, file.parquet, beside which the lines lie (default: print the lines)"""
    ask: OptionalText = None
    """the question, in place of one made of the schema"""
    pages: Annotated[str | None, tyro.conf.arg(metavar="FROM-TO", help_behavior_hint="")] = None
    """of PDF files, only these pages: 3, 2-5 or 2-"""
    places: bool = True
    """find where each value stands: in a PDF's text layer, else by asking the model"""
    dpi: int = 144
    """how finely pages of PDF files are drawn"""
    fresh: bool = False
    """begin again, and remove what an earlier run left"""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """show no progress"""
    model: ModelFlags = field(default_factory=ModelFlags)
    generate: BatchFlags = field(default_factory=BatchFlags)

    def run(self) -> None:
        from vl2.batch_job.file_items import page_range
        from vl2.batch_job.item import LineFile
        from vl2.batch_job.run_batch import check_settings, remove_job, store_settings
        from vl2.cli.flags import print_json
        from vl2.extract import extract, read_target
        from vl2.extract.documents import file_documents
        from vl2.extract.table import write_table
        from vl2.resumable_log import read_lines

        target = read_target(self.schema)
        _ = target.constraint  # a schema that cannot be followed is refused before anything is loaded
        first, last = page_range(self.pages)
        documents = file_documents(self.files, dpi=self.dpi, first=first, last=last)
        lines_path = self._lines_path()
        settings = self._settings()
        if lines_path is not None and not self.fresh:
            check_settings(lines_path, settings)
        self.model.check()
        check_answer_length(self.model, self.generate, quiet=self.quiet)
        vlm = self.model.load(quiet=self.quiet)
        options = self.generate.options()

        if lines_path is None:
            num_failed = 0
            for found in extract(vlm, documents, target, options=options, question=self.ask, with_places=self.places,
                                 max_new_tokens=vlm.limits.max_context):  # fmt: skip
                print_json(found.to_dict(), indent=None)
                num_failed += found.error is not None
            self._end(num_failed, len(documents), "its line says why")
            return
        if self.fresh:
            remove_job(lines_path)
        store_settings(lines_path, settings)
        with LineFile(lines_path) as file, ProgressDisplay(len(documents), quiet=self.quiet) as display:
            left = [document for document in documents if document.name not in file.keys]
            display.done = display.done_before = len(documents) - len(left)
            for found in extract(vlm, left, target, options=options, question=self.ask, with_places=self.places,
                                 max_new_tokens=vlm.limits.max_context):  # fmt: skip
                file.append(found.to_dict())
                display.done += 1
                display.show("extracting", line=f"vl2: {display.done} of {len(documents)}")
            file.sync()
        lines = list(read_lines(lines_path))
        table = local_path(self.out or "")
        if table != lines_path:
            write_table(lines, table)
        self._end(
            sum("error" in line for line in lines), len(documents), f"the lines with an error in {lines_path} say why"
        )

    def _lines_path(self) -> Path | None:
        from vl2.extract.table import TABLES, check_table

        if self.out is None:
            return None
        out = local_path(self.out)
        if out.suffix.lower() == ".jsonl":
            check_file(out, "-o")
            return out
        if out.suffix.lower() not in TABLES:
            raise UserError(f"-o must be a .jsonl, .csv or .parquet file, got {self.out}")
        check_table(out)
        check_file(out, "-o")
        return out.with_suffix(".jsonl")

    def _settings(self) -> dict[str, str]:
        """Return the settings that influence the answers."""
        names = ("model", "adapter", "tiling", "max_tiles", "revision", "weights", "cache", "dtype", "max_context")
        model = {name: getattr(self.model, name) for name in names}
        generate = {name: getattr(self.generate, name) for name in self.generate.__dataclass_fields__}
        rest = {
            "schema": self.schema,
            "question": self.ask,
            "pages": self.pages,
            "dpi": self.dpi,
            "places": self.places,
        }
        return {name: str(value) for name, value in {**model, **generate, **rest}.items()}

    def _end(self, num_failed: int, num_documents: int, why: str) -> None:
        if not self.quiet:
            print(f"vl2: {num_documents - num_failed} of {num_documents} extracted", file=sys.stderr)
        if num_failed:
            raise UserError(f"{num_failed} of {num_documents} documents failed: {why}")
