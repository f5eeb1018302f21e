"""The warm-up as a run: tiles drawn on the way, checkpoints and metrics as in any other run, an encoder at the end.

Tile `t` of step `s` is drawn from (seed, s, t) at the difficulty that the run has come to, so any number of ranks sees
the same tiles. The difficulty rises by itself while Latin letters are recognized well enough.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.nano.warm_up.classes import Classes, choose_characters
from experiments.nano.warm_up.heads import Naming, Reading, Recognition, Recognized, ids_of_names
from experiments.nano.warm_up.pages import PageCutter
from experiments.nano.warm_up.recipe import TileOptions, WarmUpOptions, WarmUpRecipe
from experiments.nano.warm_up.sheet import Tile
from experiments.nano.warm_up.tiles import TileBatch, TileDrawer
from vl2.checkpoint import LoadOptions, load_model, save_model
from vl2.config import ModelConfig
from vl2.data.ray_map import map_in_order
from vl2.dtypes import DTYPES
from vl2.errors import UserError
from vl2.model import VL2, init_weights
from vl2.process.preprocess_config import PreprocessConfig
from vl2.synth.sprites import Kind, read_kinds
from vl2.synth.words import read_passages
from vl2.train.checkpoint import Checkpoints
from vl2.train.cpu_encoder import use_cpu_encoder
from vl2.train.metrics import MetricsFile
from vl2.train.optimizer import MasterAdamW
from vl2.train.parts import ParameterGroup, is_block_matrix
from vl2.train.prepare import MODEL_FILES, TOKENIZER_FILES, find_model, keep_model_files
from vl2.train.ranks import Ranks, join, leave
from vl2.train.run import Outcome
from vl2.train.stage import Stage, learning_rate
from vl2.train.stopping import Ended, Stop, rank_lost

READ = "read_"  # what the log calls the shares of the visual tokens
NAMED = "named"  # and of the words for what they show, the share that is among the likeliest
KEPT = ("encoder.", "reading.projector.")  # weights of the model; all others are heads, and thrown away
LEAST_READING_WEIGHT = 0.1
_SMOOTHING = 0.97  # of the accuracy that decides on the difficulty


def _silent(_: str) -> None:
    """Say nothing: for ranks but the first."""


def warm_up(recipe: WarmUpRecipe, *, resume: bool = False, say: Callable[[str], None] = print) -> Outcome:
    """Run a recipe to its end, and export the model then, or until it is stopped. Under torchrun every rank calls it.

    RankLost where another rank has died or hangs.
    """
    ranks = join(recipe.device)
    run: WarmUpRun | None = None
    try:
        run = WarmUpRun(recipe, ranks)
        newest = run.checkpoints.newest()
        if newest is not None and not resume:
            raise UserError(f"{recipe.folder} holds a run: go on with --resume, or give another folder")
        if newest is not None:
            run.load(newest)
        say = say if ranks.is_first else _silent
        ended = run.loop(say)
        checkpoint = run.checkpoints.newest()
        assert checkpoint is not None, "a run leaves a checkpoint"
        if ended != "finished":
            say(
                f"{ended} at step {run.step:,} of {recipe.options.num_steps:,}: saved {checkpoint}; go on with --resume"
            )
        export = run.export() if ended == "finished" else None
        return Outcome(ended=ended, step=run.step, checkpoint=checkpoint, export=export)
    except (RuntimeError, OSError) as error:
        lost = rank_lost(error, ranks, Path(recipe.folder), None if run is None else run.checkpoints)
        if lost is None:
            raise
        raise lost from error
    finally:
        leave()


class WarmUpRun:
    """One process's part in a warm-up."""

    def __init__(self, recipe: WarmUpRecipe, ranks: Ranks) -> None:
        if recipe.options.batch_size < ranks.size:
            raise UserError(
                f"batch_size must be at least 1 for each of the {ranks.size} ranks, got {recipe.options.batch_size}"
            )
        self.recipe, self.ranks = recipe, ranks
        self.folder = Path(recipe.folder)
        if ranks.is_first:
            make_folder(self.folder)
        self.files = find_model(recipe.model)
        config = self.files.config
        self.drawer = make_drawer(recipe.tiles, config, self.files.processor().config)
        # The whole model is made, so that the export is one; only its encoder and projector are trained.
        if self.files.weights_folder is not None:
            self.model = load_model(self.files.weights_folder, LoadOptions(dtype=torch.float32)).train()
        else:
            self.model = VL2(config)
            init_weights(self.model, recipe.seed)
        torch.manual_seed(recipe.seed)
        vision = config.siglip
        num_classes, patches = len(self.drawer.classes), vision.patches_per_side
        self.net = Recognition(self.model.siglip, vision.width, num_classes, patches, self._reading())
        self.net.to(ranks.device, DTYPES[recipe.compute])
        if ranks.device.type == "cpu" and recipe.compute == "bfloat16":
            use_cpu_encoder(self.model)
        self.optimizer = MasterAdamW(_groups(self.net, recipe.options), betas=(0.9, 0.98), eps=1e-8, ranks=ranks)
        self.checkpoints = Checkpoints(self.folder, ranks=ranks)
        self.step, self.difficulty, self.accuracy = 0, recipe.options.difficulty, 0.0
        self._tally = _Tally(self.drawer.classes)
        self._draw = _DrawTile(self.drawer, recipe.seed)
        self._ahead: Iterator[Tile] | None = None  # while other processes draw

    def _reading(self) -> Reading:
        classes, processor = self.drawer.classes, self.files.processor()
        ids = ids_of_names(classes, self.drawer.styles, processor.tokenizer.encode)
        naming = Naming(self.model.language.model.embed_tokens.weight, ids)
        # One more class than patches have: the space.
        width = self.files.config.projector_config.n_embed
        return Reading(self.model.projector, width, len(classes) + 1, processor.config.tokens_per_side, naming)

    def load(self, folder: Path) -> None:
        state = self.checkpoints.load(folder, self._state())
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.difficulty, self.accuracy = int(state["step"]), state["difficulty"], state["accuracy"]

    def loop(self, say: Callable[[str], None]) -> Ended:
        """Step to the end or until a signal, after which a checkpoint follows; say which it was."""
        options = self.recipe.options
        stage = _stage(options)
        since, done = time.perf_counter(), self.step
        why: Ended | None = None
        metrics = MetricsFile(self.folder, last_step=self.step) if self.ranks.is_first else None
        drawing = self._drawing_ahead() if options.draw_processes > 1 else nullcontext()
        with (
            closing(metrics) if metrics is not None else nullcontext(),
            drawing,
            Stop(None, self.ranks) as stop,
        ):
            while self.step < options.num_steps and why is None:
                found = self._one_step(learning_rate(stage, self.step, options.num_steps))
                self.step += 1
                self._tally.add(found)
                is_last = self.step == options.num_steps
                if self.step % options.log_every_steps == 0 or is_last:
                    rate = (self.step - done) * options.batch_size / (time.perf_counter() - since)
                    since, done = time.perf_counter(), self.step
                    line = self._tally.take(self.step, self.difficulty, rate)
                    if metrics is not None:
                        metrics.append(line)
                    say("  ".join(f"{name} {value:g}" for name, value in line.items()))
                why = None if is_last else stop.why()
                if self.step % options.save_every_steps == 0 or is_last or why is not None:
                    self.checkpoints.save(self.step, self._state(), self.recipe.to_toml())
            self.checkpoints.wait()
        self.ranks.barrier()  # what the first rank has written is there for all
        self.checkpoints.close()
        return why or "finished"

    def export(self) -> Path:
        """Write the model in the released layout, as it was but for its encoder and projector."""
        out = self.folder / "export"
        if self.ranks.is_first:
            keep_model_files(self.files, self.folder)
            targets = {f"encoder.{name}": parameter for name, parameter in self.model.vision.named_parameters()}
            named = self.model.projector.named_parameters()
            targets |= {f"reading.projector.{name}": parameter for name, parameter in named}
            for name, master in self.optimizer.masters():
                if name in targets:
                    targets[name].data = master.cpu().clone()
            folder = self.folder / MODEL_FILES
            shutil.rmtree(out, ignore_errors=True)
            save_model(
                self.model,
                out,
                extra_files=[file for name in TOKENIZER_FILES if (file := folder / name).is_file()],
                extra_json={
                    "processor_config.json": PreprocessConfig.from_file(folder / "processor_config.json").to_dict()
                },
            )
        self.ranks.barrier()
        return out

    def _state(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "difficulty": self.difficulty,
            "accuracy": self.accuracy,
        }

    def _one_step(self, rate: float) -> Recognized:
        own = self._own()
        batch = TileBatch.of(self._tiles()).to(self.ranks.device)
        generator = torch.Generator().manual_seed(self.step * self.ranks.size + self.ranks.rank)
        found: Recognized = self.net(batch, generator)
        # By the rank's share of the tiles, which need not be the same on all.
        (found.loss(self.reading_weight) / (self.recipe.options.batch_size / len(own))).backward()
        self.optimizer.sum_over_ranks()
        norm = self.optimizer.grad_norm()
        if norm > 1:
            self.optimizer.scale(1 / norm)
        self.optimizer.step(rate)
        self.optimizer.zero()
        self._adjust(found)
        return found

    @property
    def reading_weight(self) -> float:
        """Return what the visual tokens count beside the patches: little before patches tell letters apart.

        No token can read what its patches do not show, and at first its gradients are three times as long as theirs.
        """
        return min(1.0, max(LEAST_READING_WEIGHT, self.accuracy / self.recipe.options.raise_at))

    def _own(self) -> range:
        """Return the numbers of this rank's tiles."""
        return range(self.ranks.rank, self.recipe.options.batch_size, self.ranks.size)

    @contextmanager
    def _drawing_ahead(self) -> Iterator[None]:
        """Let other processes draw the tiles from the next step on."""
        wanted = ((step, number, self.difficulty) for step in count(self.step) for number in self._own())
        processes = self.recipe.options.draw_processes
        self._ahead = map_in_order(self._draw, wanted, processes=processes, ahead=len(self._own()))
        try:
            yield
        finally:
            self._ahead = None  # which ends them

    def _tiles(self) -> list[Tile]:
        """Return this rank's tiles of the step. What is drawn ahead has the difficulty of that moment."""
        own = self._own()
        if self._ahead is not None:
            return list(islice(self._ahead, len(own)))
        return [self._draw((self.step, number, self.difficulty)) for number in own]

    def _adjust(self, found: Recognized) -> None:
        """Make the tiles harder where the letters are read; all ranks come to the same difficulty."""
        latin = self.drawer.classes.groups["latin"]
        is_latin = (found.wanted_n >= latin.start) & (found.wanted_n < latin.stop)
        counts = torch.stack((is_latin.sum(), (is_latin & found.is_right_n).sum())).double()
        of, right = self.ranks.sum_(counts).tolist()
        if of:
            self.accuracy = _SMOOTHING * self.accuracy + (1 - _SMOOTHING) * right / of
        if self.accuracy > self.recipe.options.raise_at:
            self.difficulty = min(1.0, self.difficulty + 1 / self.recipe.options.raise_steps)


@dataclass(frozen=True)
class _DrawTile:
    """Draws a tile of a step. It is sent to other processes."""

    drawer: TileDrawer
    seed: int

    def __call__(self, wanted: tuple[int, int, float]) -> Tile:
        step, number, difficulty = wanted
        return self.drawer.draw(random.Random(f"{self.seed}/{step}/{number}"), difficulty)


class _Tally:
    """Sums between two lines of the log."""

    def __init__(self, classes: Classes) -> None:
        self._groups = {"empty": range(1), **classes.groups, "space": range(classes.space, classes.space + 1)}
        self._clear()

    def add(self, found: Recognized) -> None:
        self._losses.append((found.class_loss.item(), found.box_loss.item()))
        self._count("", found.wanted_n, found.is_right_n)
        self._count(READ, found.read.wanted_n, found.read.is_right_n)
        self._count_all(NAMED, found.read.is_named_n)

    def _count(self, prefix: str, wanted_n: Tensor, is_right_n: Tensor) -> None:
        for name, numbers in self._groups.items():
            mine = (wanted_n >= numbers.start) & (wanted_n < numbers.stop)
            self._count_all(prefix + name, is_right_n[mine])

    def _count_all(self, name: str, is_right_n: Tensor) -> None:
        right, of = self._counts[name]
        self._counts[name] = right + int(is_right_n.sum()), of + len(is_right_n)

    def take(self, step: int, difficulty: float, tiles_per_s: float) -> dict[str, float]:
        """Return the line since the last one: losses, and the share of patches found by sort. Of this rank's tiles."""
        losses = np.array(self._losses).mean(axis=0)
        shares = {name: round(right / of, 4) for name, (right, of) in self._counts.items() if of}
        self._clear()
        return {
            "step": step,
            "difficulty": round(difficulty, 3),
            "class_loss": round(float(losses[0]), 4),
            "box_loss": round(float(losses[1]), 5),
            **shares,
            "tiles_per_s": round(tiles_per_s, 1),
        }

    def _clear(self) -> None:
        self._losses: list[tuple[float, float]] = []
        self._counts = {prefix + name: (0, 0) for prefix in ("", READ) for name in self._groups} | {NAMED: (0, 0)}


def make_folder(folder: Path) -> None:
    """Make a folder. UserError if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None


def make_drawer(options: TileOptions, config: ModelConfig, processor: PreprocessConfig) -> TileDrawer:
    """Return the drawer. Of several styles, kinds that only one has are left out: what it draws may be its manner."""
    inputs = Path(options.inputs)
    texts_en, texts_zh = (read_passages(str(inputs / f"text/{language}.txt")) for language in ("en", "zh"))
    styles = [_one_of_each(read_kinds(str(inputs / "art" / name))) for name in options.art]
    num_styles = Counter(kind.en for style in styles for kind in style)
    shared = {name for name, count in num_styles.items() if count > 1 or len(styles) == 1}
    kept = [[kind for kind in style if kind.en in shared] for style in styles]
    classes = Classes(choose_characters(texts_zh, options.num_chinese), tuple(sorted(shared)))
    vision = config.siglip
    pages = None
    if options.pages_share:
        pages = PageCutter.of_inputs(processor, options.inputs)
    return TileDrawer(
        classes=classes,
        texts_en=texts_en,
        texts_zh=texts_zh,
        styles=kept,
        font_folders=(str(inputs / "fonts"),),
        side_px=vision.image_size,
        patch_px=vision.patch_size,
        chinese_share=options.chinese_share,
        things_share=options.things_share,
        shapes_share=options.shapes_share,
        restyled_share=options.restyled_share,
        lines_share=options.lines_share,
        pages=pages,
        pages_share=options.pages_share,
        patches_per_token=config.projector_config.downsample_ratio,
    )


def _one_of_each(kinds: Sequence[Kind]) -> list[Kind]:
    return list({kind.en: kind for kind in kinds}.values())


def _groups(net: nn.Module, options: WarmUpOptions) -> list[ParameterGroup]:
    named = [(name, parameter) for name, parameter in net.named_parameters() if "attn_pool" not in name]
    found: dict[tuple[float, bool, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        is_orthogonal = options.optimizer == "muon" and is_block_matrix(name, parameter)
        rule = options.weight_decay if parameter.ndim > 1 else 0.0, is_orthogonal, name.startswith(KEPT)
        found.setdefault(rule, []).append((name, parameter))
    return [
        ParameterGroup(
            names=tuple(name for name, _ in members),
            parameters=tuple(parameter for _, parameter in members),
            rate_multiplier=1.0,
            weight_decay=decay,
            is_orthogonal=is_orthogonal,
        )
        for (decay, is_orthogonal, _), members in found.items()
    ]


def _stage(options: WarmUpOptions) -> Stage:
    """Return the schedule, as the stages have it: warm-up, then a cosine down to a twentieth."""
    return Stage(
        name="warm-up",
        learning_rate=options.learning_rate,
        schedule="cosine",
        warmup_steps=options.warmup_steps,
        final_rate_ratio=options.final_rate_ratio,
        balance_loss_weight=0.0,
        num_steps=options.num_steps,
        batch_size=options.batch_size,
        is_packed=False,
        mask_prompt=False,
    )
