"""`python -m experiments.nano.warm_up`: give an encoder of random weights a start, by recognition of drawn tiles."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from experiments.nano.warm_up.recipe import read_warm_up
from vl2.cli.flags import OutputFlags
from vl2.cli.main import main
from vl2.cli.train import exit_as, print_outcome


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """Train an encoder to recognize letters, emoji and shapes, patch by patch, before a model is built on it.

    A stage of experiments.nano.run, which writes its recipe. Only for encoders that start from random weights: the
    released sizes start from SigLIP.

    Examples:
      python -m experiments.nano.warm_up runs/nano/reading.toml
      torchrun --nproc-per-node 2 -m experiments.nano.warm_up runs/nano/reading.toml --resume
    """

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """a TOML file"""
    resume: bool = False
    """go on from the newest checkpoint in the run folder"""
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        from experiments.nano.warm_up.train import warm_up

        outcome = warm_up(
            read_warm_up(self.file),
            resume=self.resume,
            say=(lambda _: None) if self.output.quiet else lambda text: print(text, file=sys.stderr, flush=True),
        )
        if self.output.json:
            print_outcome(outcome)
        elif outcome.export is not None and not self.output.quiet:
            print(f"vl2: the encoder is in {outcome.export}", file=sys.stderr)
        exit_as(outcome)


def parse(arguments: Sequence[str]) -> WarmUp:
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    return tyro.cli(
        WarmUp,
        prog="python -m experiments.nano.warm_up",
        description=inspect.getdoc(WarmUp),
        args=list(arguments),
        config=config,
    )


if __name__ == "__main__":
    main(parse=parse)
