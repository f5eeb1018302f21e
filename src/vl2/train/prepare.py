"""Prepare a run: locate the model's files, build the model, index the data, and make the plan and the loader."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from vl2.checkpoint import load_model, locate_checkpoint
from vl2.checkpoint.empty_model import build_empty, materialize
from vl2.checkpoint.resolve import BUILT_IN
from vl2.config import PRESETS, ModelConfig, preset
from vl2.data.index import RecordStore, StoreIndex, build_index
from vl2.data.loader import Loader, LoaderOptions
from vl2.data.pack import Packing
from vl2.data.pack_fill import PackFill
from vl2.data.pack_plan import PackPlan, PlanOptions
from vl2.data.store import Records, open_random
from vl2.errors import UserError
from vl2.model import VL2, init_weights
from vl2.process.processor import Processor
from vl2.train.loss import AuxiliaryLoss
from vl2.train.ranks import Ranks, RankZeroSection
from vl2.train.recipe import ModelOptions, Recipe
from vl2.train.stage import Stage, total_steps

MODEL_FILES = "model"  # folder in the run folder with the files that an export needs besides the weights
INDEXES = "indexes"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The origin of a model: its configuration, the folder of its processor, and the folder of its weights if any."""

    config: ModelConfig
    processor_folder: Path
    weights_folder: Path | None

    def processor(self) -> Processor:
        """Return the processor. Raise UserError if its tiles or vocabulary do not fit the model."""
        processor = Processor.from_folder(self.processor_folder)
        made = processor.config.tile_px, processor.config.tokens_per_side
        taken = self.config.vision_config.image_size, self.config.tokens_per_side
        if made != taken:
            raise UserError(
                f"the processor in {self.processor_folder} makes tiles of {made[0]} px and {made[1]} tokens a side, "
                f"the model takes {taken[0]} px and {taken[1]}"
            )
        if len(processor.tokenizer) > self.config.language_config.vocab_size:
            raise UserError(
                f"the tokenizer in {self.processor_folder} has {len(processor.tokenizer)} entries, "
                f"the model has room for {self.config.language_config.vocab_size}"
            )
        return processor


def model_config(options: ModelOptions) -> ModelConfig:
    """Return the configuration of a recipe's model."""
    if options.name in PRESETS:
        return preset(options.name)
    return ModelConfig.from_file(locate_checkpoint(options.name) / "config.json")


def find_model(options: ModelOptions, run_folder: Path | None = None) -> ModelFiles:
    """Locate a recipe's model, and download it if it is a hub id. A resumed run uses the copy in its run folder.

    Raise UserError if weights or the processor are missing.
    """
    own = run_folder / MODEL_FILES if run_folder is not None else None
    if own is not None and (own / "config.json").is_file():
        return ModelFiles(config=ModelConfig.from_file(own / "config.json"), processor_folder=own, weights_folder=None)
    named = options.name in PRESETS
    folder = locate_checkpoint(options.name) if options.name == BUILT_IN or not named else None
    if options.init == "weights" and (folder is None or not any(folder.glob("*.safetensors"))):
        hint = 'name a checkpoint folder or hub id, or set model.init = "random"'
        raise UserError(f"model {options.name} has no weights here: {hint}")
    processor = locate_checkpoint(options.processor) if options.processor else folder
    if processor is None:
        raise UserError(f'"{options.name}" is a shape only: model.processor must name a folder with its tokenizer')
    config = preset(options.name) if named else ModelConfig.from_file(_not_none(folder) / "config.json")
    return ModelFiles(
        config=config, processor_folder=processor, weights_folder=folder if options.init == "weights" else None
    )


def keep_model_files(files: ModelFiles, run_folder: Path) -> None:
    """Copy the model's files into the run folder, so that exports and resumed runs do not need the original."""
    folder = run_folder / MODEL_FILES
    if files.processor_folder == folder:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("processor_config.json", *TOKENIZER_FILES):
            if (files.processor_folder / name).is_file():
                shutil.copyfile(files.processor_folder / name, folder / name)
        # Write the configuration last, because its presence marks the folder as complete.
        text = json.dumps(files.config.to_dict(), indent=2, ensure_ascii=False) + "\n"
        partial = folder / "config.json.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / "config.json")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None


def make_model(files: ModelFiles, seed: int, *, is_first: bool, is_filled_later: bool) -> VL2:
    """Return the model in training mode, with weights on the first rank and on the meta device on other ranks.

    With `is_filled_later` the weights are uninitialized, because a checkpoint will be loaded into them.
    """
    if not is_first:
        return build_empty(files.config)
    if is_filled_later:
        model = build_empty(files.config)
        materialize(model, torch.float32, torch.device("cpu"))
        return model
    if files.weights_folder is not None:
        return load_model(files.weights_folder).train()
    model = VL2(files.config)
    init_weights(model, seed)
    return model


def open_stores(recipe: Recipe) -> dict[str, Records]:
    if not recipe.data.sources:
        raise UserError("data.sources is empty: name at least one store of records")
    return {source.name: open_random(source.path) for source in recipe.data.sources}


def make_plan(
    recipe: Recipe, stores: Mapping[str, Records], processor: Processor, *, folder: Path | None, ranks: Ranks, say: Say
) -> PackPlan:
    """Return the pack plan of a recipe. With a `folder`, the first rank builds the indexes and stores them there.

    `say` gets notes about records that are left out.
    """
    indexes = [_index(name, store, processor, recipe, folder, ranks, say) for name, store in stores.items()]
    for index in indexes:
        if index.problems:
            first = index.problems[0]
            count = len(index.problems)
            say(f"{index.name}: {count} records cannot be used, the first is {first.record}: {first.message}")
    sources = [source for index in indexes for source in index.sources()]
    mixture = recipe.data.make_mixture(recipe.stage.name)
    if recipe.data.only_present:
        mixture = mixture.only(source.category for source in sources)
    plan = PackPlan(sources, mixture, plan_options(recipe))
    if plan.excluded:
        say(f"{len(plan.excluded)} records are longer than {recipe.stage.seq_len} tokens and are left out")
    if ranks.is_first and (warning := fill_of(plan).warning) is not None:
        say(warning)
    return plan


def fill_of(plan: PackPlan) -> PackFill:
    """Return how full the packs of the first window are."""
    packs = [(pack.num_tokens, pack.num_tiles) for pack in plan.window(0)]
    return PackFill.of(packs, plan.options.packing)


def plan_options(recipe: Recipe) -> PlanOptions:
    stage = recipe.stage
    packing = Packing(seq_len=stage.seq_len, is_packed=stage.is_packed)
    if stage.max_tiles_per_pack is not None:
        packing = Packing(seq_len=stage.seq_len, is_packed=stage.is_packed, max_tiles=stage.max_tiles_per_pack)
    return PlanOptions(
        packs_per_step=stage.batch_size, seed=recipe.seed, packing=packing, window_packs=recipe.data.window_packs
    )


def make_loader(
    recipe: Recipe,
    plan: PackPlan,
    stores: Mapping[str, RecordStore],
    processor: Processor,
    ranks: Ranks,
    auxiliary_loss: AuxiliaryLoss | None = None,
) -> Loader:
    options = LoaderOptions(
        num_workers=recipe.data.workers,
        read_ahead=recipe.data.read_ahead,
        # Without packing a sequence is one sample, and padding it would waste computation.
        is_padded=recipe.stage.is_packed,
        mask_prompt=recipe.stage.mask_prompt,
        is_pairs=_is_pairs(recipe.stage),
        note=None if auxiliary_loss is None else auxiliary_loss.note,
    )
    return Loader(plan, stores, processor, ranks.rank, ranks.size, options)


def num_steps(stage: Stage, plan: PackPlan | None) -> int:
    """Return the number of steps of a stage.

    If the length is given in tokens, packed sequences count as full, as in the paper. Without packing, a sequence is
    one sample and counts as the mean length of the samples that the plan draws.
    """
    if stage.is_packed or plan is None:
        return total_steps(stage)
    # Shares are fractions of tokens, so a source with share s and mean length m gives s / m samples per token.
    samples_per_token = sum(
        share * len(source) / float(source.num_tokens.sum())
        for source, share in zip(plan.sources, plan.shares, strict=True)
    )
    return total_steps(stage, 1 / samples_per_token)


COUNT_IN_PROCESSES_FROM = 100_000  # records; for fewer, starting the processes takes longer than counting


def _index(
    name: str, store: Records, processor: Processor, recipe: Recipe, folder: Path | None, ranks: Ranks, say: Say
) -> StoreIndex:
    stage = recipe.stage
    if folder is None:
        return build_index(name, store, processor, mask_prompt=stage.mask_prompt, is_pairs=_is_pairs(stage))
    path = folder / INDEXES / f"{name}.npz"
    section = RankZeroSection(ranks, recipe.engine.timeout_s)
    if not ranks.is_first:
        section.wait()
        return _load(path, store, processor, stage)
    if not _is_usable(path, store, processor, stage):
        say(f"counting the tokens of {len(store):,} records of {name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {path.parent}: {error.strerror or error}") from None
        index = build_index(
            name,
            store,
            processor,
            files=store.checksum,
            mask_prompt=stage.mask_prompt,
            is_pairs=_is_pairs(stage),
            after_each=section.heartbeat,
            processes=(os.cpu_count() or 1) if len(store) >= COUNT_IN_PROCESSES_FROM else 1,
        )
        index.save(path)
    section.end()
    return _load(path, store, processor, stage)


def _load(path: Path, store: Records, processor: Processor, stage: Stage) -> StoreIndex:
    return StoreIndex.load(
        path,
        processor,
        len(store),
        files=store.checksum,
        mask_prompt=stage.mask_prompt,
        is_pairs=_is_pairs(stage),
    )


def _is_pairs(stage: Stage) -> bool:
    return stage.objective == "preference"


def _is_usable(path: Path, store: Records, processor: Processor, stage: Stage) -> bool:
    try:
        _load(path, store, processor, stage)
    except UserError:
        return False
    return True


def _not_none(folder: Path | None) -> Path:
    assert folder is not None
    return folder
