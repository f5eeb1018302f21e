"""The command `vl2 quantize`, which writes a checkpoint with 8-bit or 4-bit weights, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vl2.cli.flags import OptionalText, locate, print_json
from vl2.files import local_path
from vl2.progress import bytes_bar


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Write a checkpoint in 8 or 4 bits a weight. It needs little memory, whatever the size.

    The new folder is used like any other, loads at once, and may be larger than the memory: see `vl2 inspect`.

    Examples:
      vl2 quantize ./deepseek-vl2-tiny ./tiny-int4
      vl2 quantize small ./small-int8 --weights int8
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """nano (built in), tiny, small or base (released), a checkpoint folder, or a hub id"""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """the folder to write; it must be new"""
    weights: Literal["int8", "int4"] = "int4"
    """int4: 4.5 bits a weight, the encoder in 8; int8: a little more exact, nearly twice as large"""
    revision: OptionalText = None
    """branch, tag or commit on the hub"""
    offline: bool = False
    """use only what is already downloaded"""
    json: bool = False
    """print one JSON object instead of text"""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """show no progress"""

    def run(self) -> None:
        from vl2.checkpoint.folder import refuse_existing
        from vl2.checkpoint.write import quantize_checkpoint

        out = local_path(self.out)
        refuse_existing(out)  # before anything is downloaded
        folder = locate(self.checkpoint, revision=self.revision, offline=self.offline, quiet=self.quiet)
        with bytes_bar(self.quiet, "quantizing") as progress:
            quantize_checkpoint(folder, out, weights=self.weights, progress=progress)
        before, after = _bytes(folder), _bytes(out)
        if self.json:
            print_json({"folder": str(out), "weights": self.weights, "bytes": after, "source_bytes": before})
        else:
            print(f"{out}: {after / 1e9:.2f} GB in {self.weights}, of {before / 1e9:.2f} GB")


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
