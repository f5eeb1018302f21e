"""The command `vl2 verify`, which checks a checkpoint and this machine and prints a page to paste into an issue."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from vl2.cli.flags import OptionalFile, OptionalText, OutputFlags, locate, print_json
from vl2.errors import UserError
from vl2.files import local_path
from vl2.progress import bytes_bar


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check a checkpoint: its files, tensors, tokens and weights, the publisher's printed answers, speed and memory.

    The page says nothing about you: no paths, no names. Exit code 1 if a check failed.

    Examples:
      vl2 verify nano
      vl2 verify tiny --out page.md
      vl2 verify ./deepseek-vl2-small --weights int4 --pictures ./images --no-download
      vl2 verify base --quick
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """a checkpoint folder, a hub id, or a size: nano, tiny, small, base"""
    quick: bool = False
    """leave out what reads weights: nothing is loaded"""
    pictures: Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """take the publisher's pictures from this folder instead of its repository"""
    no_download: bool = False
    """download nothing, neither checkpoint nor pictures"""
    revision: OptionalText = None
    """branch, tag or commit on the hub"""
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    weights: Annotated[str, tyro.conf.arg(metavar="FORM")] = "auto"
    """int8 or int4 quantizes while loading, where memory is short; the page says so"""
    memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE", help_behavior_hint="")] = None
    """keep within e.g. 8GB; experts of a quantized folder are paged in and out for it"""
    out: OptionalFile = None
    """write the page to this file instead of stdout"""
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        from vl2.checkpoint.policy import check_weights, memory_bytes
        from vl2.checkpoint.resolve import hub_id
        from vl2.infer.vlm import choose_device

        memory_bytes(self.memory, choose_device(self.device))
        check_weights(self.weights)
        pictures = self._pictures_folder()
        self._check_out()
        target = hub_id(self.model)
        folder = locate(
            target,
            revision=self.revision,
            offline=self.no_download,
            quiet=self.output.quiet,
            needs_weights=not self.quick,
        )
        from vl2.verify.run_checks import VerifyOptions, verify
        from vl2.verify.samples import Pictures

        options = VerifyOptions(
            target=target,
            folder=folder,
            device=self.device,
            weights=self.weights,
            memory=self.memory,
            quick=self.quick,
            pictures=Pictures(pictures, may_download=not self.no_download),
            pictures_folder=pictures,
        )
        with bytes_bar(self.output.quiet, "reading weights") as progress:
            page = verify(options, _step_printer(self.output.quiet), progress)
        if self.out is not None:
            self._write(page.to_markdown())
        if self.output.json:
            print_json(page.to_dict())
        elif self.out is None:
            print(page.to_markdown(), end="", flush=True)
        if not self.output.quiet:
            print(f"vl2 verify: {page.summary}", file=sys.stderr)
        if page.has_failed:
            raise SystemExit(1)

    def _pictures_folder(self) -> Path | None:
        folder = None if self.pictures is None else local_path(self.pictures)
        if folder is not None and not folder.is_dir():
            raise UserError(f"--pictures must be a folder, got {self.pictures}")
        return folder

    def _check_out(self) -> None:
        """Raise UserError, before an hour of work, if the page could not be written afterwards."""
        if self.out is None:
            return
        path = local_path(self.out)
        if path.is_dir():
            raise UserError(f"cannot write {self.out}: it is a folder")
        if not path.absolute().parent.is_dir():
            raise UserError(f"cannot write {self.out}: there is no folder {path.parent}")

    def _write(self, text: str) -> None:
        assert self.out is not None
        try:
            local_path(self.out).write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {self.out}: {error.strerror}") from None


def _step_printer(quiet: bool) -> Callable[[str], None]:
    """Return a function that prints the current group of checks on stderr."""
    return (lambda text: None) if quiet else (lambda text: print(f"vl2 verify: {text}", file=sys.stderr, flush=True))
