"""What a unit of a pipeline costs: operations by formula, or seconds as measured.

Costs are of one micro-batch, forward and backward, as a share per tile and a share per token. A measured file is JSON:
{"block": [per tile, per token], "projector": ..., "join": ..., "dense_layer": ..., "layer": ..., "head": ...}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vl2.config import ModelConfig
from vl2.errors import UserError
from vl2.train.flops import ForwardCost
from vl2.train.parallel.pipeline_split import Unit


@dataclass(frozen=True, kw_only=True)
class UnitCosts:
    """Per tile and per token, forward. Backward is `backward_ratio` times as much."""

    block: tuple[float, float]
    projector: tuple[float, float]
    join: tuple[float, float]
    dense_layer: tuple[float, float]
    layer: tuple[float, float]
    head: tuple[float, float]
    backward_ratio: float = 2.0
    update: float = 0.0  # seconds of the optimizer for one parameter

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
        """Count operations, and divide them by rates where these are given: then the costs are seconds.

        Documents of this mean length make the scores; `trained_share` of the tokens pass the head.
        """
        cost = ForwardCost.of(config)
        language, blocks = config.language_config, config.vision_config.layers
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
