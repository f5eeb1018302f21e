"""The command `vl2 batch`, which answers a question for many images, PDF pages or requests and can be continued."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vl2.cli.answer import check_file, check_picture_folder, input_pictures
from vl2.cli.flags import GenerateFlags, ModelFlags, OptionalFile, OptionalFolder, OptionalText, check_answer_length
from vl2.errors import UserError
from vl2.files import local_path
from vl2.progress import ProgressDisplay

if TYPE_CHECKING:
    from vl2.batch_job.item import BatchItem
    from vl2.batch_job.run_batch import BatchProgress, Report
    from vl2.infer.sampling import GenerateOptions

LOOP_REPEATS = 8


@dataclass(frozen=True, kw_only=True)
class BatchFlags(GenerateFlags):
    """How the answers are generated."""

    max_new_tokens: int = 2048
    """end an answer after this many tokens"""
    max_repeats: int = LOOP_REPEATS
    """end an answer that says something so many times in a row; 0 is off"""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Answer for every image of a folder, every page of PDF files, or every line of a JSONL file of requests.

    The output has one JSON line per item, in their order; one that fails has an "error" instead of a "text". Stopped by
    Ctrl-C, a crash or a full disk, the same command goes on where it was. An -o that ends in .md, or is a folder, gets
    Markdown, and the lines lie beside it.

    Examples:
      vl2 batch examples/word.png examples/line.png -o text.md --read
      vl2 batch scans/ -o scans.jsonl --read --model tiny
      vl2 batch photos/ -o mugs.jsonl --locate "the red mug" --draw drawn/ --coco mugs.json --model tiny
      vl2 batch requests.jsonl -o answers.jsonl --model tiny
    """

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """images, PDF files, folders of them, or one .jsonl of requests (OpenAI's batch lines, or id, question, images)"""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="OUT")]
    """file.jsonl, file.md, or a folder for one Markdown file per document"""
    read: bool = False
    """ask for the text of each page"""
    describe: bool = False
    """ask for a description"""
    grounded: bool = False
    """with --describe: a box around everything that is named"""
    ask: OptionalText = None
    """ask this"""
    locate: OptionalText = None
    """ask for the boxes of this"""
    constrained: bool = False
    """make malformed boxes impossible"""
    draw: OptionalFolder = None
    """write each image with its boxes into this folder"""
    coco: OptionalFile = None
    """write all boxes to this file as COCO JSON at the end"""
    tables: Literal["html", "markdown"] = "html"
    """in Markdown, the tables of the DeepSeek-OCR family; those that Markdown cannot express stay HTML"""
    dpi: int = 144
    """how finely pages of PDF files are drawn"""
    fresh: bool = False
    """begin again, and remove what an earlier run left"""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """show no progress"""
    model: ModelFlags = field(default_factory=ModelFlags)
    generate: BatchFlags = field(default_factory=BatchFlags)

    def run(self) -> None:
        from vl2.batch_job.exports import write_coco
        from vl2.batch_job.item import check_unique, is_error
        from vl2.batch_job.markdown_export import MarkdownExport
        from vl2.batch_job.run_batch import check_settings, remove_job, run_batch, store_settings
        from vl2.infer.sequence import Limits
        from vl2.resumable_log import read_lines

        lines_path, is_markdown = self._lines_path()
        self.model.check()
        items = self._items(self._options())
        check_unique(items)
        if (self.coco is not None or is_markdown) and any(item.form == "openai" for item in items):
            raise UserError("--coco and Markdown are for files and short requests, not for OpenAI's batch lines")
        self._check_outputs(lines_path, items)
        if not self.fresh:
            check_settings(lines_path, self._settings())
        check_answer_length(self.model, self.generate, quiet=self.quiet)
        # The number of cache positions that `run_batch` uses.
        cache_tokens = Limits.max_num_seqs * self.model.context(quiet=self.quiet)
        vlm = self.model.load(quiet=self.quiet, cache_tokens=cache_tokens)
        if self.fresh:
            remove_job(lines_path)
        store_settings(lines_path, self._settings())
        draw = local_path(self.draw) if self.draw is not None else None
        try:
            with batch_progress(quiet=self.quiet) as report:
                done = run_batch(vlm, items, lines_path, draw=draw, model=self.model.model, report=report)
        except KeyboardInterrupt:
            self._say("stopped; the same command goes on from there")
            raise
        if self.coco is not None:
            write_coco(read_lines(lines_path), items, local_path(self.coco))
        if is_markdown:
            MarkdownExport(path=local_path(self.out), items=items, tables=self.tables).write(read_lines(lines_path))
        self._say(summary(done, lines_path))
        # Failures of earlier runs count too, so that the same command always ends with the same exit code.
        num_failed = sum(map(is_error, read_lines(lines_path)))
        if num_failed:
            raise UserError(
                f"{num_failed} of {len(items)} items failed: the lines with an error in {lines_path} say why"
            )

    def _check_outputs(self, lines_path: Path, items: Sequence[BatchItem]) -> None:
        """Raise UserError, before the model is loaded, if an output could not be written afterwards."""
        check_file(lines_path, "-o")
        if self.coco is not None:
            coco = local_path(self.coco)
            check_file(coco, "--coco")
            if coco.resolve() in {lines_path.resolve(), Path(self.out).resolve(), *self._resolved_inputs()}:
                raise UserError(f"--coco {self.coco} is another file of this job: name a file of its own")
        if local_path(self.out).suffix.lower() == ".md":
            check_file(local_path(self.out), "-o")
        if self.draw is not None:
            check_picture_folder(self.draw, "--draw", (item.id for item in items), input_pictures(items))

    def _resolved_inputs(self) -> set[Path]:
        return {local_path(text).resolve() for text in self.inputs}

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(f"vl2: {text}", file=sys.stderr)

    def _lines_path(self) -> tuple[Path, bool]:
        """Return the path of the output lines, and whether they are also exported as Markdown."""
        out = local_path(self.out)
        suffix = out.suffix.lower()
        if suffix == ".jsonl":
            if out.resolve() in self._resolved_inputs():
                raise UserError(f"-o {self.out} is one of the inputs: name another file")
            return out, False
        if suffix == ".md":
            return out.with_suffix(".jsonl"), True
        if suffix:
            raise UserError(f"-o must be a .jsonl file, a .md file or a folder, got {self.out}")
        return out / "answers.jsonl", True

    def _options(self) -> GenerateOptions:
        from vl2.infer.constraint_boxes import WellFormedBoxes

        options = self.generate.options()
        return replace(options, constraint=WellFormedBoxes()) if self.constrained else options

    def _items(self, options: GenerateOptions) -> list[BatchItem]:
        from vl2.batch_job.exports import pages_folder
        from vl2.batch_job.file_items import file_items
        from vl2.batch_job.markdown_export import figures_folder
        from vl2.batch_job.request_lines import request_items

        question = self._question()
        is_requests = [Path(text).suffix.lower() == ".jsonl" for text in self.inputs]
        if is_requests == [True]:
            if question is not None:
                raise UserError("a file of requests says itself what is asked: leave --read, --ask and the like away")
            return request_items(Path(self.inputs[0]), options)
        if any(is_requests):
            raise UserError("a file of requests must be the only input")
        if question is None:
            raise UserError("say what to ask: --read, --describe, --ask TEXT or --locate TEXT")
        leave_out = [] if self.draw is None else [local_path(self.draw)]
        if self.coco is not None:
            leave_out.append(pages_folder(local_path(self.coco)))
        if local_path(self.out).suffix.lower() != ".jsonl":
            leave_out.append(figures_folder(local_path(self.out)))
        return file_items(self.inputs, question, options, dpi=self.dpi, query=self.locate, leave_out=leave_out)

    def _question(self) -> str | None:
        from vl2.infer.prompts import describe_prompt, locate_prompt, read_prompt

        if self.grounded and not self.describe:
            raise UserError("--grounded belongs to --describe")
        is_ours = self.read or self.describe or self.locate is not None  # else the question is the user's own
        kind = self.model.kind(quiet=self.quiet) if is_ours else "DeepSeek-VL2"
        asked = [
            *([read_prompt(kind)] if self.read else []),
            *([describe_prompt(grounded=self.grounded, kind=kind)] if self.describe else []),
            *([self.ask] if self.ask is not None else []),
            *([locate_prompt(self.locate, kind)] if self.locate is not None else []),
        ]
        if len(asked) > 1:
            raise UserError("only one of --read, --describe, --ask and --locate can be asked")
        if asked and not asked[0].strip():
            raise UserError("the question is empty: say what to ask")
        return asked[0] if asked else None

    def _settings(self) -> dict[str, str]:
        """Return the settings that influence the answers."""
        question = self._question()
        names = ("model", "adapter", "tiling", "max_tiles", "revision", "weights", "cache", "dtype", "max_context")
        model = {name: getattr(self.model, name) for name in names}
        generate = {name: getattr(self.generate, name) for name in self.generate.__dataclass_fields__}
        rest = {"question": question, "dpi": self.dpi, "constrained": self.constrained}
        return {name: str(value) for name, value in {**model, **generate, **rest}.items()}


@contextmanager
def batch_progress(*, quiet: bool) -> Iterator[Report]:
    """Yield a function that shows the progress of a job."""
    with ProgressDisplay(None, quiet=quiet) as display:

        def report(progress: BatchProgress) -> None:
            display.total, display.done_before = progress.total, progress.done_before
            display.done = progress.done_before + progress.done
            failed = f"{progress.failed} with an error" if progress.failed else ""
            parts = [f"{display.done} of {progress.total}", failed, display.time_left()]
            line = f"vl2: {', '.join(part for part in parts if part)}"
            display.show(f"answering{', ' * bool(failed)}{failed}", line=line)

        yield report


def summary(progress: BatchProgress, out: Path) -> str:
    """Return the message that a finished run prints."""
    parts = [f"{progress.done_before + progress.done} of {progress.total} done"]
    if progress.done_before:
        parts.append(f"{progress.done_before} by earlier runs")
    if progress.failed:
        parts.append(f"{progress.failed} with an error")
    if progress.repeating:
        parts.append(f"{progress.repeating} ended because they repeated themselves")
    return f"{', '.join(parts)}: {out}"
