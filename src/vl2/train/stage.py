"""The settings of a training stage, the paper's three stages for its three sizes, and the learning rate schedule.

The learning rate has a linear warm-up followed by one of the paper's three schedules. Steps count from 0.

Source: arXiv 2412.10302, table 2 and section on training. The paper does not give the number of warm-up steps, the
final rate of the cosine schedule and AdamW's epsilon. Our choices are the constants below, a tenth of the peak (where
the paper's "step" schedule ends, too) and 1e-8.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from vl2.errors import UserError

Part = Literal["vision", "projector", "language"]  # the projector includes the newline and separator vectors
# What can be frozen: a part, or of the DeepSeek-OCR family's encoder SAM, the two convolutions behind it, or its second
# half, which is CLIP or a decoder with queries.
VisionPart = Literal["sam", "convolutions", "clip", "query_encoder"]
Freezable = Literal["vision", "projector", "language", "sam", "convolutions", "clip", "query_encoder"]
Schedule = Literal["cosine", "step", "constant"]
Objective = Literal["next_token", "preference"]  # preference: chosen over rejected answers (DPO), see `preference.py`
Optimizer = Literal["adamw", "muon"]  # muon: Muon for the matrices of the blocks, AdamW for all other parameters

WARMUP_STEPS = 100  # of alignment and fine-tuning
PRETRAINING_WARMUP_STEPS = 2000
COSINE_FLOOR = 0.1


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The settings of one training stage. Either `num_steps` or `num_tokens` gives its length."""

    name: str
    learning_rate: float  # the peak
    rate_multipliers: Mapping[Part, float] = field(default_factory=dict)  # by part; the default is 1
    frozen: tuple[Freezable, ...] = ()
    schedule: Schedule
    warmup_steps: int
    final_rate_ratio: float = COSINE_FLOOR  # the final rate over the peak, for the cosine schedule only
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip_norm: float = 1.0
    is_bfloat16_optimizer: bool = False  # masters, moments and gradient sums in bfloat16
    balance_loss_weight: float
    expert_bias_step: float = 0.0  # change of the expert bias per optimizer step; for sigmoid routing with a bias only
    num_steps: int | None = None
    num_tokens: int | None = None  # without padding
    batch_size: int  # sequences per optimizer step
    seq_len: int = 4096
    is_packed: bool
    mask_prompt: bool  # train on answers only, otherwise on all text
    max_tiles_per_pack: int | None = None
    objective: Objective = "next_token"
    beta: float = 0.1  # preference only: how strongly the model is held to the reference
    label_smoothing: float = 0.0  # preference only: the share of pairs that may be in the wrong order

    def __post_init__(self) -> None:
        for part in self.frozen:
            if part not in get_args(Freezable):
                raise UserError(f"a part of the model must be one of {', '.join(get_args(Freezable))}, got {part!r}")
        for part in self.rate_multipliers:
            if part not in get_args(Part):
                raise UserError(f"a part of the model must be one of {', '.join(get_args(Part))}, got {part!r}")
        still = {*self.frozen, *(["vision"] if freezes_vision(self.frozen) else [])}
        if self.schedule not in get_args(Schedule):
            raise UserError(f"schedule must be one of {', '.join(get_args(Schedule))}, got {self.schedule!r}")
        if self.optimizer not in get_args(Optimizer):
            raise UserError(f"optimizer must be one of {', '.join(get_args(Optimizer))}, got {self.optimizer!r}")
        if self.optimizer == "muon" and self.is_bfloat16_optimizer:
            raise UserError(f"stage {self.name}: a bfloat16 optimizer is AdamW, so optimizer must be adamw")
        if self.objective not in get_args(Objective):
            raise UserError(f"objective must be one of {', '.join(get_args(Objective))}, got {self.objective!r}")
        if self.objective == "preference" and not self.mask_prompt:
            raise UserError(f"stage {self.name}: preferences are about answers, so mask_prompt must be true")
        if set(get_args(Part)) <= still:
            raise UserError(f"stage {self.name}: all parts are frozen, nothing would be trained")
        idle = sorted(still & set(self.rate_multipliers))
        if idle:
            raise UserError(f"stage {self.name}: {idle[0]} is frozen, so it can have no rate multiplier")
        if "language" in self.frozen and self.expert_bias_step:
            raise UserError(f"stage {self.name}: language is frozen, so expert_bias_step must be 0")
        if (self.num_steps is None) == (self.num_tokens is None):
            raise UserError(f"stage {self.name}: give either num_steps or num_tokens")
        self._check_numbers()

    def _check_numbers(self) -> None:
        lengths = {
            "batch_size": self.batch_size, "seq_len": self.seq_len, "num_steps": self.num_steps,
            "num_tokens": self.num_tokens, "max_tiles_per_pack": self.max_tiles_per_pack,
        }  # fmt: skip
        for name, count in lengths.items():
            if count is not None and count < 1:
                raise UserError(f"stage {self.name}: {name} must be at least 1, got {count}")
        positive = {
            "learning_rate": self.learning_rate, "eps": self.eps, "clip_norm": self.clip_norm, "beta": self.beta,
        }  # fmt: skip
        multipliers = {f"rate_multipliers.{part}": value for part, value in self.rate_multipliers.items()}
        for name, value in {**positive, **multipliers}.items():
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"stage {self.name}: {name} must be a positive number, got {value}")
        at_least_0 = {
            "warmup_steps": self.warmup_steps, "weight_decay": self.weight_decay,
            "balance_loss_weight": self.balance_loss_weight, "expert_bias_step": self.expert_bias_step,
        }  # fmt: skip
        for name, value in at_least_0.items():
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"stage {self.name}: {name} must be at least 0, got {value}")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"stage {self.name}: label_smoothing must be in 0..0.5, below 0.5, got {self.label_smoothing}"
            )
        if not 0 <= self.final_rate_ratio <= 1:
            raise UserError(f"stage {self.name}: final_rate_ratio must be in 0..1, got {self.final_rate_ratio}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"stage {self.name}: betas must be in 0..1, below 1, got {self.betas}")

    def rate_multiplier(self, part: Part) -> float:
        return self.rate_multipliers.get(part, 1.0)


def freezes_vision(frozen: Collection[Freezable]) -> bool:
    """Return whether the whole encoder is frozen, as one part or by all of its parts."""
    has_second_half = "clip" in frozen or "query_encoder" in frozen  # an encoder has one of the two
    return "vision" in frozen or ({"sam", "convolutions"} <= {*frozen} and has_second_half)


def still_stage_parts(stage: Stage) -> tuple[Part, ...]:
    """Return the parts that a stage freezes as a whole."""
    return tuple(
        part for part in get_args(Part) if part in stage.frozen or (part == "vision" and freezes_vision(stage.frozen))
    )


def _paper_stages(
    *,
    rates: tuple[float, float, float],
    balance_loss_weight: float,
    tokens: tuple[int, int, int],
    pretraining_batch: int,
    pretraining_bias_step: float = 0.0,
    is_bfloat16_optimizer: bool = False,
) -> Mapping[str, Stage]:
    vision: Mapping[Part, float] = {"vision": 0.1}
    alignment = Stage(
        name="alignment",
        learning_rate=rates[0],
        rate_multipliers=vision,
        frozen=("language",),
        schedule="cosine",
        warmup_steps=WARMUP_STEPS,
        balance_loss_weight=balance_loss_weight,
        is_bfloat16_optimizer=is_bfloat16_optimizer,
        num_tokens=tokens[0],
        batch_size=256,
        is_packed=False,
        mask_prompt=False,
    )
    pretraining = Stage(
        name="pretraining",
        learning_rate=rates[1],
        rate_multipliers=vision,
        schedule="step",
        warmup_steps=PRETRAINING_WARMUP_STEPS,
        balance_loss_weight=balance_loss_weight,
        expert_bias_step=pretraining_bias_step,
        is_bfloat16_optimizer=is_bfloat16_optimizer,
        num_tokens=tokens[1],
        batch_size=pretraining_batch,
        is_packed=True,
        mask_prompt=False,
    )
    tuning = Stage(
        name="fine-tuning",
        learning_rate=rates[2],
        rate_multipliers=vision,
        schedule="constant",
        warmup_steps=WARMUP_STEPS,
        balance_loss_weight=balance_loss_weight,
        is_bfloat16_optimizer=is_bfloat16_optimizer,
        num_tokens=tokens[2],
        batch_size=64,
        is_packed=True,
        mask_prompt=True,
    )
    return {stage.name: stage for stage in (alignment, pretraining, tuning)}


# By size, then by the name of the stage.
STAGES: Mapping[str, Mapping[str, Stage]] = {
    "tiny": _paper_stages(
        rates=(5.4e-4, 5.4e-4, 3.0e-5),
        balance_loss_weight=0.001,
        tokens=(2_000_000_000, 798_500_000_000, 19_500_000_000),
        pretraining_batch=2304,
    ),
    "small": _paper_stages(
        rates=(4.2e-4, 4.2e-4, 1.4e-5),
        balance_loss_weight=0.001,
        tokens=(2_000_000_000, 808_900_000_000, 20_000_000_000),
        pretraining_batch=2304,
    ),
    "base": _paper_stages(
        rates=(4.5e-4, 4.5e-4, 2.0e-5),
        balance_loss_weight=0.0001,
        tokens=(2_000_000_000, 796_500_000_000, 19_500_000_000),
        pretraining_batch=3360,
        pretraining_bias_step=0.001,
        is_bfloat16_optimizer=True,
    ),
}


def total_steps(stage: Stage, tokens_per_sequence: float | None = None) -> int:
    """Return the number of steps of a stage. Sequences count as full unless their mean length is given."""
    if stage.num_steps is not None:
        return stage.num_steps
    assert stage.num_tokens is not None
    length = stage.seq_len if tokens_per_sequence is None else tokens_per_sequence
    assert 0 < length <= stage.seq_len, f"sequences of {length} tokens where {stage.seq_len} is the most"
    return max(1, round(stage.num_tokens / (stage.batch_size * length)))


def learning_rate(stage: Stage, step: int, num_steps: int) -> float:
    """Return the learning rate of a step, before the multipliers of parts."""
    assert 0 <= step < num_steps, f"step {step} of {num_steps}"
    if step < stage.warmup_steps:
        return stage.learning_rate * (step + 1) / stage.warmup_steps
    if stage.schedule == "cosine":
        progress = (step - stage.warmup_steps) / max(1, num_steps - stage.warmup_steps - 1)
        floor = stage.final_rate_ratio
        return stage.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
    if stage.schedule == "step":
        # The rate is divided by sqrt(10) after half of the steps, and again after three quarters.
        num_cuts = (step >= 0.5 * num_steps) + (step >= 0.75 * num_steps)
        return stage.learning_rate * float(10 ** (-num_cuts / 2))
    return stage.learning_rate
