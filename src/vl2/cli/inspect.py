"""The command `vl2 inspect`, which shows the tokens of an image, or the memory that a checkpoint needs.

It loads no weights.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from vl2.cli.flags import CheckpointFlags, OptionalFile, OptionalInt, OutputFlags, open_images, print_json
from vl2.config import PRESETS, ModelConfig, preset
from vl2.errors import UserError
from vl2.files import is_url, local_path

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".ico", ".jp2", ".avif")


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Show how an image is cut into tiles, or how large a checkpoint is. Loads no weights.

    Examples:
      vl2 inspect examples/scene.png --draw tiles.png
      vl2 inspect nano
      vl2 inspect small --memory 12GB --context 2048
      vl2 inspect base --json
    """

    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """an image (path, URL or "-"), a checkpoint folder, a hub id, or a size: nano, tiny, small, base"""
    draw: OptionalFile = None
    """for an image: write the canvas with its tiles to this file"""
    context: OptionalInt = None
    """for a checkpoint: tokens that the cache is planned for; all that the model can read by default"""
    memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE", help_behavior_hint="")] = None
    """for a checkpoint: plan for this much, e.g. 8GB, instead of what is free now"""
    cache: Annotated[str, tyro.conf.arg(metavar="FORM")] = "auto"
    """for a checkpoint: plan for a cache in int8, instead of the weights' own type"""
    model: CheckpointFlags = field(default_factory=CheckpointFlags)
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        if self._is_checkpoint():
            self._inspect_checkpoint()
        else:
            self._inspect_image()

    def _is_checkpoint(self) -> bool:
        if is_url(self.target):
            return False
        path = local_path(self.target)
        if self._is_size() or path.is_dir():
            return True
        # "photos/cat.jpg" looks like a hub id, but a mistyped path must not be looked up on the hub.
        if self.target == "-" or path.exists() or path.suffix.lower() in PICTURES:
            return False
        from vl2.checkpoint.resolve import HUB_ID

        if HUB_ID.fullmatch(self.target) is None:
            sizes = ", ".join(PRESETS)
            raise UserError(
                f"no file or folder {self.target}: give an image, a checkpoint folder, a hub id, or {sizes}"
            )
        return True

    def _is_size(self) -> bool:
        """Tell whether the target is a size. As for --model, a folder takes precedence over a released size."""
        return self.target in PRESETS and (self.target == "nano" or not local_path(self.target).is_dir())

    def _inspect_image(self) -> None:
        from vl2.cli.answer import check_drawable, save_drawing

        if (self.context, self.memory, self.cache) != (None, None, "auto"):
            raise UserError("--context, --memory and --cache are for checkpoints, and this is an image")
        check_drawable(self.draw, [self.target])
        tiling = self.model.tiling_rule()
        (image,) = open_images([self.target])
        from vl2.process.processor import Processor
        from vl2.process.tile_report import TileReport

        folder = self.model.locate(quiet=self.output.quiet, needs_weights=False)
        report = TileReport.of(image, Processor.from_folder(folder, tiling=tiling, max_tiles=self.model.max_tiles))
        if self.output.json:
            print_json(report.to_dict())
        else:
            print(report.to_text())
        if self.draw is not None:
            save_drawing(report.draw(image), self.draw, quiet=self.output.quiet)

    def _inspect_checkpoint(self) -> None:
        from vl2.checkpoint.machine_memory import parse_bytes
        from vl2.checkpoint.model_size import ModelSize
        from vl2.checkpoint.quantization_config import QuantizationConfig
        from vl2.checkpoint.resolve import BUILT_IN, built_in_folder
        from vl2.cli.memory_report import MemoryReport, print_size

        if self.draw is not None:
            raise UserError("--draw is for images, and this is a checkpoint")
        if self.context is not None and self.context < 1:
            raise UserError(f"--context must be at least 1 token, got {self.context}")
        bound = None if self.memory is None else parse_bytes(self.memory)
        source = self.model
        if replace(source, revision=None, offline=False) != CheckpointFlags():
            raise UserError("--model, --tiling and --max-tiles are for images, and this is a checkpoint")
        if self._is_size():
            if source.revision is not None:
                raise UserError(f"--revision is for hub ids, and {self.target} is built in")
            config, record = preset(self.target), None
            folder = built_in_folder() if self.target == BUILT_IN else None
        else:
            folder = replace(source, model=self.target).locate(quiet=self.output.quiet, needs_weights=False)
            config = ModelConfig.from_file(folder / "config.json")
            record = QuantizationConfig.of(config, folder)
        own = config.language_config.max_position_embeddings
        if self.context is not None and self.context > own:
            raise UserError(f"--context must be at most {own}, the model's own, got {self.context}")
        image_scale = 1.0 if folder is None else _image_scale(folder, config)
        size = ModelSize.of(config)
        report = MemoryReport.of(self.target, config, record, context=self.context, cache=self.cache, bound=bound)
        if self.output.json:
            print_json({**size.to_dict(), "image_scale": image_scale, **report.to_dict()})
        else:
            print_size(size, sys.stdout)
            if image_scale != 1:
                print(f"image scale {image_scale}: pictures are tiled as if they were so many times as large")
            report.print(sys.stdout)


def _image_scale(folder: Path, config: ModelConfig) -> float:
    """Return the image scale of a checkpoint, which is 1 without a processor_config.json and for DeepSeek-OCR."""
    from vl2.process.preprocess_config import PreprocessConfig

    file = folder / "processor_config.json"
    return PreprocessConfig.from_file(file).image_scale if config.kind == "DeepSeek-VL2" and file.is_file() else 1.0
