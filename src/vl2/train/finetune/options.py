"""The options of a fine-tuning run, and their conversion to a recipe.

Users give the batch size in records. The run packs records into sequences, whose length is that of an average batch or
of the longest record, whichever is larger. A step takes as many sequences as make up the batch, given how full they
are. Epochs are counted in tokens. Importing this module does not load PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vl2.config import ModelConfig, ScoringFunc
from vl2.errors import UserError
from vl2.train.adapter_options import AdapterOptions
from vl2.train.recipe import (
    DataOptions,
    EngineOptions,
    GroupOptions,
    ModelOptions,
    Recipe,
    RunOptions,
    SourceOptions,
)
from vl2.train.stage import Freezable, Objective, Part, Stage

if TYPE_CHECKING:
    from vl2.train.finetune.split_data import OwnData

Compute = Literal["auto", "float32", "bfloat16"]

# The paper fine-tunes all weights at 1.4e-5 to 3e-5. An adapter needs ten times that, because it starts from zero.
FULL_RATE, ADAPTER_RATE = 2e-5, 2e-4
PREFERENCE_RATE = 5e-5  # of an adapter: a margin grows with every step, and answers break down if it grows too far
VISION_RATE = 0.1  # of the encoder, as in the paper
# Adapters train without balance loss: they do not change the router, and a small dataset is unbalanced by nature. When
# all weights are trained, the weight is the paper's, which is ten times smaller for sigmoid routing.
FULL_BALANCE_WEIGHTS: Mapping[ScoringFunc, float] = {"softmax": 0.001, "sigmoid": 0.0001}
WARMUP_PART = 0.03
MAX_EVALUATIONS = 12  # the most evaluations of the held-out records during a run
PATIENCE = 3  # evaluations without a new lowest held-out loss after which a run stops
# A small set has to be seen often, because the steps count, not the epochs; a large one is learned in little more than
# one epoch. Measured on three small tasks: docs/finetuning.md.
MOST_EPOCHS, SHOWN_RECORDS = 30.0, 3000
DATA_NAME = "own"
PACK_TILES, PACK_TILE_PX = 16, 384  # tiles of a pack, which bound the encoder's memory, and their side


def default_epochs(num_records: int) -> float:
    """Return the number of epochs for a set of this size: 30 up to 100 records, 4 for 1000, 1.03 for 100,000."""
    return min(MOST_EPOCHS, 1 + SHOWN_RECORDS / num_records)


def usual_tiles(config: ModelConfig) -> int:
    """Return the tiles of a pack: 16 of the released size, or as many smaller ones as have as many pixels."""
    if config.kind != "DeepSeek-VL2":
        return PACK_TILES
    return max(PACK_TILES, PACK_TILES * PACK_TILE_PX**2 // config.siglip.image_size**2)


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """The options of a fine-tuning run."""

    model: str
    adapter: AdapterOptions = field(default_factory=AdapterOptions)  # method "none" trains the weights themselves
    frozen: tuple[Freezable, ...] = ()
    rates: Mapping[Part, float] = field(default_factory=dict)  # multiples of the learning rate
    learning_rate: float | None = None
    epochs: float | None = None  # from the number of records by default
    steps: int | None = None  # overrides epochs
    objective: Objective = "next_token"
    beta: float = 0.1  # of preferences
    label_smoothing: float = 0.0  # of preferences
    stops_early: bool = True  # when the held-out loss no longer falls; either way the best weights are kept
    batch_size: int = 16  # records per step, on average
    seq_len: int | None = None
    mask_prompt: bool = True
    device: str = "auto"
    compute: Compute = "auto"  # bfloat16 on a GPU, float32 elsewhere
    activation_checkpointing: bool = False
    save_every: int = 200
    minutes: float | None = None
    seed: int = 0
    num_ranks: int = 1  # processes among which the sequences of a step are divided

    def __post_init__(self) -> None:
        epochs = 1.0 if self.epochs is None else self.epochs
        if not epochs > 0 or self.batch_size < 1 or (self.steps is not None and self.steps < 1):
            raise UserError("epochs, steps and batch-size must be above 0")
        if not math.isfinite(epochs):
            raise UserError(f"epochs must be a finite number, got {self.epochs}: stop a run with minutes or Ctrl-C")
        if self.learning_rate is not None and not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UserError(f"learning-rate must be a positive number, got {self.learning_rate:g}")
        if self.objective == "preference" and not self.adapter.is_used:
            raise UserError(
                "preferences train an adapter, as the reference is the model without it: method must be lora or qlora"
            )
        if self.seq_len is not None and self.seq_len < 1:
            raise UserError(f"seq-len must be at least 1, got {self.seq_len}")

    def epochs_of(self, data: OwnData) -> float:
        """Return the epochs asked for, or those that fit the number of records."""
        return default_epochs(data.num_train) if self.epochs is None else self.epochs

    def recipe(
        self,
        data: OwnData,
        run_folder: Path,
        data_path: Path,
        *,
        config: ModelConfig,
        is_random: bool,
        fill: float = 1.0,
    ) -> Recipe:
        """Return the recipe of the run. One epoch has as many tokens as all training records together.

        `fill` is the fraction of sequence positions that are not padding; it determines the numbers of sequences and
        steps. A step has at least one sequence for each rank. Raise UserError if `seq_len` is out of range.
        """
        context = config.language_config.max_position_embeddings
        if self.objective == "preference":
            context *= 2  # a pair is two conversations in one sequence, each with its own positions
        step_tokens = min(self.batch_size, data.num_train) * data.mean_tokens
        seq_len = self.seq_len or min(context, max(data.most_tokens, math.ceil(step_tokens / self.num_ranks)))
        if seq_len < data.most_tokens or seq_len > context:
            raise UserError(
                f"seq-len must be in {data.most_tokens}..{context} (longest record, context), got {seq_len}"
            )
        num_sequences = max(self.num_ranks, round(step_tokens / (seq_len * fill)))
        steps_per_epoch = sum(data.tokens.values()) / (num_sequences * seq_len * fill)
        # Subtract a millionth of a step, which is rounding error.
        num_steps = self.steps or max(1, math.ceil(self.epochs_of(data) * steps_per_epoch - 1e-6))
        return Recipe(
            model=ModelOptions(name=self.model, init="random" if is_random else "weights"),
            stage=self.stage(
                config, seq_len=seq_len, batch_size=num_sequences, num_steps=num_steps, most_tiles=data.most_tiles
            ),
            run=RunOptions(
                folder=str(run_folder),
                save_every_steps=self.save_every,
                keep=1,
                minutes=self.minutes,
                log_every_steps=10,
                evaluate_every_steps=math.ceil(num_steps / MAX_EVALUATIONS),
            ),
            data=DataOptions(
                sources=(SourceOptions(name=DATA_NAME, path=str(data_path)),),
                groups=(GroupOptions(share=1.0, categories={name: float(n) for name, n in data.tokens.items()}),),
                window_packs=max(1, math.ceil(sum(data.tokens.values()) / seq_len)),
            ),
            engine=EngineOptions(
                device=self.device,
                compute=self._compute(),
                activation_checkpointing=self.activation_checkpointing,
            ),
            adapter=self.adapter,
            seed=self.seed,
        )

    def stage(self, config: ModelConfig, *, seq_len: int, batch_size: int, num_steps: int, most_tiles: int) -> Stage:
        is_adapter = self.adapter.is_used
        usual_rate = ADAPTER_RATE if is_adapter else FULL_RATE
        if self.objective == "preference":
            usual_rate = PREFERENCE_RATE
        balance_weight = FULL_BALANCE_WEIGHTS[config.language_config.scoring_func]
        if is_adapter or "language" in self.frozen:
            balance_weight = 0.0
        return Stage(
            name="own",
            learning_rate=usual_rate if self.learning_rate is None else self.learning_rate,
            rate_multipliers=self.rates,
            frozen=self.frozen,
            schedule="cosine",
            warmup_steps=min(round(WARMUP_PART * num_steps) + 1, num_steps - 1),
            weight_decay=0.0 if is_adapter else 0.1,
            balance_loss_weight=balance_weight,
            expert_bias_step=0.0,
            num_steps=num_steps,
            batch_size=batch_size,
            seq_len=seq_len,
            is_packed=True,
            mask_prompt=self.mask_prompt,
            max_tiles_per_pack=max(most_tiles, usual_tiles(config)),
            objective=self.objective,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
        )

    def _compute(self) -> Literal["float32", "bfloat16"]:
        if self.compute != "auto":
            return self.compute
        from vl2.infer.vlm import choose_device

        return "bfloat16" if choose_device(self.device).type == "cuda" else "float32"
