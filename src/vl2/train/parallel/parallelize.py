"""Place a model on the ranks as the recipe's engine options say: replicated, sharded, or as a pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vl2.config import ModelConfig
from vl2.data.pack_plan import PackPlan, Position
from vl2.dtypes import DTYPES
from vl2.errors import UserError
from vl2.model import VL2
from vl2.train.parallel.pipeline_model import PipelineModel
from vl2.train.parallel.pipeline_split import PipelineSplit, UnitCosts, split_pipeline, units
from vl2.train.parallel.rank_layout import make_layout
from vl2.train.parallel.tensor_parallel import check_tensor_parallel
from vl2.train.ranks import Ranks
from vl2.train.recipe import Recipe
from vl2.train.shard import check_divided, shard
from vl2.train.size import held_dtype


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A model on its ranks."""

    model: VL2 | PipelineModel  # this rank's model or part
    data: Ranks  # the ranks that get different packs
    tensor: Ranks  # the ranks that get the same packs and divide every layer


def parallelize(model: VL2, recipe: Recipe, plan: PackPlan, ranks: Ranks) -> Placed:
    """Place a model on the ranks.

    Call `freeze` first. Raise UserError if the ranks cannot be divided as the recipe says.
    """
    engine, dtype, held = recipe.engine, DTYPES[recipe.engine.compute], held_dtype(recipe.stage)
    if engine.parallel == "replicated" or ranks.size == 1:
        shard(model, engine.parallel, ranks, dtype)
        return Placed(model=model, data=ranks, tensor=Ranks(rank=0, size=1, device=ranks.device))
    layout = make_layout(
        ranks,
        pipeline=engine.pipeline,
        expert_parallel=engine.expert_parallel,
        tensor_parallel=engine.tensor_parallel,
    )
    if engine.pipeline == 1:
        shard(model, engine.parallel, ranks, dtype, layout=layout, held=held)
        return Placed(model=model, data=layout.data, tensor=layout.tensor)
    split = split_for(model, recipe, plan)
    pipeline = PipelineModel(model, split, layout, dtype, held=held, schedule=engine.pipeline_schedule)
    return Placed(model=pipeline, data=layout.data, tensor=layout.tensor)


def split_for(model: VL2, recipe: Recipe, plan: PackPlan) -> PipelineSplit:
    """Split a model by the costs of its layers for the packs of the first step; all ranks compute the same split."""
    engine, config = recipe.engine, model.config
    packs = plan.step(Position()).packs
    entries = [entry for pack in packs for entry in pack.entries]
    tokens = sum(pack.num_tokens for pack in packs) / len(packs)
    if engine.pipeline_costs:
        costs = UnitCosts.read(Path(engine.pipeline_costs))
    else:
        length = sum(entry.num_tokens**2 for entry in entries) / max(sum(e.num_tokens for e in entries), 1)
        costs = UnitCosts.by_formula(config, length)
    visual = [pack.num_tiles for pack in packs if pack.num_tiles]
    tiles = sum(visual) / max(len(visual), 1)
    row = units(config)
    return split_pipeline(
        engine.pipeline_cut, row, costs.forward(row, config, tiles=tiles, tokens=tokens), engine.pipeline
    )


def check_ranks(recipe: Recipe, num_ranks: int) -> None:
    """Raise UserError if the recipe does not fit the number of ranks. Call this before loading anything.

    `check_experts` checks the rest when the model's sizes are known.
    """
    engine = recipe.engine
    for name, size in (("expert_parallel", engine.expert_parallel), ("tensor_parallel", engine.tensor_parallel)):
        needed = engine.pipeline * size
        if num_ranks % needed:
            raise UserError(
                f"engine.pipeline {engine.pipeline} and engine.{name} {size} need a multiple of {needed} ranks, "
                f"there are {num_ranks}: set both to 1 to divide nothing, or ask `vl2 plan` for a layout"
            )


def check_model(config: ModelConfig, recipe: Recipe, num_ranks: int) -> None:
    """Raise UserError for a model of the DeepSeek-OCR family that cannot be trained as the recipe says."""
    engine = recipe.engine
    is_divided = engine.pipeline > 1 or engine.parallel != "replicated" or engine.balance_tiles
    if config.kind != "DeepSeek-VL2" and num_ranks > 1 and is_divided:
        raise UserError(
            f'{config.kind} is trained on several ranks with engine.parallel = "replicated" only, without a pipeline '
            "and without balance_tiles"
        )


def check_experts(config: ModelConfig, recipe: Recipe, num_ranks: int) -> None:
    """Raise UserError if the ranks cannot divide experts and layers as the recipe says. Call this before loading."""
    engine, num_stage = recipe.engine, num_ranks // recipe.engine.pipeline
    check_divided(config.language_config, num_stage, engine.expert_parallel)
    check_tensor_parallel(config.language_config, engine.tensor_parallel, num_stage // engine.tensor_parallel)
