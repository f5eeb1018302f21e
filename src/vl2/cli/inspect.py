"""`vl2 inspect`: what an image costs in tokens, or what a checkpoint costs in memory. Loads no weights."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from vl2.cli.flags import CheckpointFlags, OptionalFile, OutputFlags, locate, open_images, print_json
from vl2.config import PRESETS, ModelConfig, preset
from vl2.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".ico", ".jp2", ".avif")


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show how an image is cut into tiles, or how large a checkpoint is. Loads no weights.

    Examples:
      vl2 inspect photo.jpg --draw tiles.png
      vl2 inspect ./deepseek-vl2-tiny
      vl2 inspect small --json
    """

    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """an image (path, URL or "-"), a checkpoint folder, a hub id, or a size: nano, tiny, small, base"""
    draw: OptionalFile = None
    """for an image: write the canvas with its tiles to this file"""
    model: CheckpointFlags = field(default_factory=CheckpointFlags)
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        if self._is_checkpoint():
            self._inspect_checkpoint()
        else:
            self._inspect_image()

    def _is_checkpoint(self) -> bool:
        path = Path(self.target).expanduser()
        if self.target in PRESETS or path.is_dir():
            return True
        # "photos/cat.jpg" has the form of a hub id, but a mistyped path must not be looked up there.
        if path.exists() or path.suffix.lower() in PICTURES:
            return False
        from vl2.weights.locate import HUB_ID

        return HUB_ID.fullmatch(self.target) is not None

    def _inspect_image(self) -> None:
        from vl2.cli.answer import check_drawable, save_drawing

        check_drawable(self.draw, [self.target])
        tiling = self.model.tiling_rule()
        (image,) = open_images([self.target])
        from vl2.process.tile_report import TileReport
        from vl2.process.processor import Processor

        folder = self.model.locate(quiet=self.output.quiet)
        report = TileReport.of(image, Processor.from_folder(folder, tiling=tiling, max_tiles=self.model.max_tiles))
        if self.output.json:
            print_json(report.to_dict())
        else:
            print(report.to_text())
        if self.draw is not None:
            save_drawing(report.draw(image), self.draw, quiet=self.output.quiet)

    def _inspect_checkpoint(self) -> None:
        if self.draw is not None:
            raise UserError("--draw is for images, and this is a checkpoint")
        source = self.model
        if replace(source, revision=None, offline=False) != CheckpointFlags():
            raise UserError("--model, --tiling and --max-tiles are for images, and this is a checkpoint")
        if self.target in PRESETS:
            if source.revision is not None:
                raise UserError(f"--revision is for hub ids, and {self.target} is built in")
            config = preset(self.target)
        else:
            folder = locate(self.target, revision=source.revision, offline=source.offline, quiet=self.output.quiet)
            config = ModelConfig.from_file(folder / "config.json")
        from vl2.cli.size_report import print_size
        from vl2.weights.size import ModelSize

        size = ModelSize.of(config)
        if self.output.json:
            print_json(size.to_dict())
        else:
            print_size(size, sys.stdout)
