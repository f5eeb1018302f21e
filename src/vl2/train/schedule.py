"""The learning rate of every step: a linear warm-up, then one of the paper's three schedules.

Source: arXiv 2412.10302, table 2 and section on training. Steps count from 0.
"""

import math

from vl2.train.stage import Stage


def total_steps(stage: Stage, tokens_per_sequence: float | None = None) -> int:
    """Return how many steps a stage has. Its sequences are taken to be full unless their mean length is given."""
    if stage.num_steps is not None:
        return stage.num_steps
    assert stage.num_tokens is not None
    length = stage.seq_len if tokens_per_sequence is None else tokens_per_sequence
    assert 0 < length <= stage.seq_len, f"sequences of {length} tokens where {stage.seq_len} is the most"
    return max(1, round(stage.num_tokens / (stage.batch_size * length)))


def learning_rate(stage: Stage, step: int, num_steps: int) -> float:
    """Return the rate of a step, before the multipliers of parts."""
    assert 0 <= step < num_steps, f"step {step} of {num_steps}"
    if step < stage.warmup_steps:
        return stage.learning_rate * (step + 1) / stage.warmup_steps
    if stage.schedule == "cosine":
        progress = (step - stage.warmup_steps) / max(1, num_steps - stage.warmup_steps - 1)
        floor = stage.final_rate_ratio
        return stage.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))
    if stage.schedule == "step":
        # Divided by the root of 10 at half of the steps, and again at three quarters.
        num_cuts = (step >= 0.5 * num_steps) + (step >= 0.75 * num_steps)
        return stage.learning_rate * float(10 ** (-num_cuts / 2))
    return stage.learning_rate
