"""The recipe of a warm-up, as a TOML file has it: what is drawn, how long and how fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vl2.errors import UserError
from vl2.files import read_toml
from vl2.train.recipe import Compute, ModelOptions
from vl2.train.stage import Optimizer
from vl2.train.toml_file import from_table, to_toml


@dataclass(frozen=True, kw_only=True)
class TileOptions:
    """What is drawn."""

    inputs: str
    """folder that experiments.nano.inputs made: its texts, fonts and sprite sets are used"""
    num_chinese: int = 2500
    """characters that are told apart, the most frequent of the texts"""
    art: tuple[str, ...] = ()
    """sprite sets among the inputs' art, one for each style"""
    chinese_share: float = 0.44
    """of all tiles, once they are as hard as they get"""
    things_share: float = 0.22
    """sprites and shapes; the rest is English"""
    shapes_share: float = 0.375
    """of the things, once they are half as hard as they get; the rest are sprites"""
    restyled_share: float = 0.0
    """of the sprites: drawn as another hand would, so that a set's manner is not taken for the thing"""
    lines_share: float = 0.0
    """of the tiles of text: one line on a picture of its own, padded as the processor pads"""
    pages_share: float = 0.0
    """of all tiles: cut from small charts, tables, receipts and lines, as the processor cuts them"""

    def __post_init__(self) -> None:
        for name in ("shapes_share", "restyled_share", "pages_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if min(self.chinese_share, self.things_share) < 0 or self.chinese_share + self.things_share > 1:
            raise UserError(
                "chinese_share and things_share must be at least 0 and together at most 1, "
                f"got {self.chinese_share} and {self.things_share}"
            )


@dataclass(frozen=True, kw_only=True)
class WarmUpOptions:
    """How long and how fast."""

    num_steps: int
    batch_size: int = 48
    """tiles per step, over all ranks"""
    optimizer: Optimizer = "muon"
    learning_rate: float = 2e-3
    final_rate_ratio: float = 0.05
    """where the cosine ends, over the peak"""
    warmup_steps: int = 150
    weight_decay: float = 0.05
    difficulty: float = 0.0
    """of the first tiles, from 0 to 1"""
    raise_at: float = 0.42
    """share of Latin letters recognized from which the difficulty rises"""
    raise_steps: int = 700
    """steps from the easiest tiles to all of them"""
    draw_processes: int = 1
    """processes that draw the tiles of a rank; more than one draw ahead, for a device that trains faster than that"""
    save_every_steps: int = 250
    log_every_steps: int = 50

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "raise_steps", "draw_processes", "save_every_steps", "log_every_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.warmup_steps < 0:
            raise UserError(f"warmup_steps must be at least 0, got {self.warmup_steps}")
        if not 0 <= self.difficulty <= 1:
            raise UserError(f"difficulty must be from 0 to 1, got {self.difficulty}")


@dataclass(frozen=True, kw_only=True)
class WarmUpRecipe:
    """One warm-up run. It ends with FOLDER/export: the whole model, of which encoder and projector are trained."""

    folder: str
    tiles: TileOptions
    options: WarmUpOptions
    model: ModelOptions = field(default_factory=lambda: ModelOptions(name="nano", init="random"))
    compute: Compute = "bfloat16"
    device: str = "cpu"
    seed: int = 0

    def to_toml(self) -> str:
        return to_toml(self)


def read_warm_up(path: Path | str) -> WarmUpRecipe:
    """Read a recipe. UserError in one line for whatever is wrong with it."""
    try:
        return from_table(WarmUpRecipe, read_toml(path))
    except UserError as error:
        text = str(error)
        raise UserError(text if str(path) in text else f"{path}: {text}") from None
