"""Split a model into the segments of a pipeline, through the encoder's blocks as well as the decoder layers.

The model is a sequence of units: vision blocks, the projector, the join of visual tokens with the embedded text,
decoder layers, and the head with the loss. A segment is a run of consecutive units. Segments are assigned to the ranks
round-robin, so with as many segments as ranks each rank has one, with twice as many each has two.

- "looped": the encoder is split into one segment per rank, and so is the language model; each rank holds a part of
  both. Batches with images pass the ranks twice, text batches once, through the language segments only. Both kinds
  load all ranks evenly, and no weights move between the two.
- "contiguous": one segment per rank, split by costs, inside the encoder or not.
- "encoder_first": the whole encoder on the first rank, the language model evenly over the others, as in pipelines that
  treat the encoder as one stage. It serves for comparison.

The cost of a unit is a number of operations by formula, or measured seconds, for one micro-batch, per tile and per
token. A file of measured costs is JSON: {"block": [per tile, per token], "projector": ..., "join": ...,
"dense_layer": ..., "layer": ..., "head": ...}.

Source: arXiv 2412.10302, section on training infrastructure (fine-grained division of the encoder, two strategies).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from vl2.config import ModelConfig
from vl2.errors import UserError
from vl2.train.flops import ForwardCost
from vl2.train.recipe import SplitKind

UnitKind = Literal["block", "projector", "join", "layer", "head"]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """An indivisible part of the model."""

    kind: UnitKind
    index: int = 0  # of the vision block or decoder layer

    @property
    def is_visual(self) -> bool:
        return self.kind in ("block", "projector")


Segment = tuple[Unit, ...]


@dataclass(frozen=True, kw_only=True)
class PipelineSplit:
    """The segments of a pipeline, in the order in which a batch passes them. Segment i is on rank i % num_ranks."""

    num_ranks: int
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        assert len(self.segments) % self.num_ranks == 0, f"{len(self.segments)} segments on {self.num_ranks} ranks"
        assert all(self.segments), "a segment is empty"

    @property
    def loops(self) -> int:
        """The number of segments per rank."""
        return len(self.segments) // self.num_ranks

    @property
    def is_looped(self) -> bool:
        return self.loops > 1

    @property
    def text_segments(self) -> tuple[int, ...]:
        """The segments that a batch without images passes.

        With one segment per rank these are all segments; those of the encoder then run on a blank tile.
        """
        if not self.is_looped:
            return tuple(range(len(self.segments)))
        return tuple(i for i, segment in enumerate(self.segments) if not segment[0].is_visual)

    def of_rank(self, rank: int) -> tuple[int, ...]:
        return tuple(range(rank, len(self.segments), self.num_ranks))


def units(config: ModelConfig) -> tuple[Unit, ...]:
    """Return the model as a sequence of units."""
    return (
        *(Unit(kind="block", index=i) for i in range(config.siglip.layers)),
        Unit(kind="projector"),
        Unit(kind="join"),
        *(Unit(kind="layer", index=i) for i in range(config.language_config.num_hidden_layers)),
        Unit(kind="head"),
    )


def split_pipeline(kind: SplitKind, row: Sequence[Unit], costs: Sequence[float], num_ranks: int) -> PipelineSplit:
    """Split a model for a pipeline with the least cost of the busiest rank.

    `costs` are the costs of the units for the mean batch with images. Raise UserError if there are fewer units than
    ranks.
    """
    if kind not in get_args(SplitKind):
        raise UserError(f"engine.pipeline_cut must be one of {', '.join(get_args(SplitKind))}, got {kind!r}")
    assert len(row) == len(costs), f"{len(costs)} costs of {len(row)} units"
    num_visual = sum(unit.is_visual for unit in row)
    least = min(num_visual, len(row) - num_visual) if kind == "looped" else len(row) - (kind != "contiguous")
    if num_ranks > least:
        raise UserError(
            f"engine.pipeline must be at most {least} for this model with engine.pipeline_cut {kind}, got {num_ranks}"
        )
    if kind == "contiguous":
        return PipelineSplit(num_ranks=num_ranks, segments=_segments(row, divide(costs, num_ranks)))
    visual, text = row[:num_visual], row[num_visual:]
    if kind == "encoder_first":
        if num_ranks == 1:
            return PipelineSplit(num_ranks=1, segments=(tuple(row),))
        rest = divide(costs[num_visual:], num_ranks - 1)
        return PipelineSplit(num_ranks=num_ranks, segments=(tuple(visual), *_segments(text, rest)))
    text_ends = divide(costs[num_visual:], num_ranks)
    loads = _loads(costs[num_visual:], text_ends)
    visual_ends = divide(costs[:num_visual], num_ranks, loads)
    return PipelineSplit(num_ranks=num_ranks, segments=(*_segments(visual, visual_ends), *_segments(text, text_ends)))


def divide(costs: Sequence[float], num_parts: int, loads: Sequence[float] | None = None) -> list[int]:
    """Split a sequence into non-empty parts so that the largest cost of a part plus its load is least.

    Return the end of each part. `loads` are costs that the parts already have. On ties the earliest split wins.
    """
    assert len(costs) >= num_parts, f"{len(costs)} units for {num_parts} parts"
    loads = loads or [0.0] * num_parts
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    # best[end] is the least maximum cost when the parts so far cover the first `end` units.
    best = [float("inf")] * (len(costs) + 1)
    best[0] = 0.0
    choices: list[list[int]] = []
    for part in range(num_parts):
        following, choice = [float("inf")] * (len(costs) + 1), [0] * (len(costs) + 1)
        for end in range(part + 1, len(costs) - (num_parts - part - 1) + 1):
            for start in range(part, end):
                most = max(best[start], before[end] - before[start] + loads[part])
                if most < following[end]:
                    following[end], choice[end] = most, start
        choices.append(choice)
        best = following
    ends = [len(costs)]
    for choice in reversed(choices[1:]):
        ends.append(choice[ends[-1]])
    return ends[::-1]


def _segments(row: Sequence[Unit], ends: Sequence[int]) -> tuple[Segment, ...]:
    return tuple(tuple(row[start:end]) for start, end in zip([0, *ends], ends, strict=False))


def _loads(costs: Sequence[float], ends: Sequence[int]) -> list[float]:
    return [sum(costs[start:end]) for start, end in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True, kw_only=True)
class UnitCosts:
    """The forward cost of each kind of unit per tile and per token. Backward costs `backward_ratio` times as much."""

    block: tuple[float, float]
    projector: tuple[float, float]
    join: tuple[float, float]
    dense_layer: tuple[float, float]
    layer: tuple[float, float]
    head: tuple[float, float]
    backward_ratio: float = 2.0
    update: float = 0.0  # seconds of the optimizer per parameter

    @classmethod
    def by_formula(
        cls,
        config: ModelConfig,
        document_length: float,
        *,
        dense_rate: float = 1.0,
        expert_rate: float = 1.0,
        trained_share: float = 0.5,
    ) -> UnitCosts:
        """Compute costs as operations, or as seconds if rates in operations per second are given.

        `document_length` is the mean length, which determines the attention scores. `trained_share` is the fraction of
        tokens that pass the head.
        """
        cost = ForwardCost.of(config)
        language, blocks = config.language_config, config.siglip.layers
        width, layers = language.hidden_size, language.num_hidden_layers
        dense = sum(not language.is_moe_layer(i) for i in range(layers))
        experts = (language.num_experts_per_tok or 0) + (language.n_shared_experts or 0)
        moe_mlp = 2.0 * width * (3 * language.moe_intermediate_size * experts + (language.n_routed_experts or 0))
        dense_mlp = 2.0 * 3 * width * language.intermediate_size
        scores = cost.per_pair * document_length / 2 / layers
        attention = (cost.per_token - dense * dense_mlp - (layers - dense) * moe_mlp) / layers + scores
        return cls(
            block=(cost.per_tile_vision / blocks / dense_rate, 0.0),
            projector=(cost.per_tile_projector / dense_rate, 0.0),
            join=(0.0, 0.0),
            dense_layer=(0.0, (attention + dense_mlp) / dense_rate),
            layer=(0.0, attention / dense_rate + moe_mlp / expert_rate),
            head=(0.0, cost.per_logit * trained_share / dense_rate),
        )

    @classmethod
    def read(cls, path: Path) -> UnitCosts:
        """Read a file of measured costs. Raise UserError if it is not valid."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            ratio, update = float(values.pop("backward_ratio", 2.0)), float(values.pop("update", 0.0))
            pairs = {name: (float(pair[0]), float(pair[1])) for name, pair in values.items()}
            return cls(**pairs, backward_ratio=ratio, update=update)
        except (OSError, ValueError, TypeError, IndexError, AttributeError) as error:
            names = "block, projector, join, dense_layer, layer, head"
            raise UserError(f"{path} must have [per tile, per token] of {names}: {error}") from None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def forward(self, row: Sequence[Unit], config: ModelConfig, *, tiles: float, tokens: float) -> list[float]:
        """Return the forward cost of each unit for a micro-batch."""
        return [self._of(unit, config, tiles, tokens) for unit in row]

    def _of(self, unit: Unit, config: ModelConfig, tiles: float, tokens: float) -> float:
        by_kind: Mapping[str, tuple[float, float]] = {
            "block": self.block, "projector": self.projector, "join": self.join, "head": self.head,
        }  # fmt: skip
        if unit.kind == "layer":
            pair = self.layer if config.language_config.is_moe_layer(unit.index) else self.dense_layer
        else:
            pair = by_kind[unit.kind]
        return pair[0] * tiles + pair[1] * tokens
