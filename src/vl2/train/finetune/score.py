"""Score a model on held-out records: loss on the answers, exact match, and boxes found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vl2.data.pack import Packed, pack_samples
from vl2.data.record import Record
from vl2.model import VL2
from vl2.process.grounding import parse_tolerant
from vl2.process.processor import Processor
from vl2.train.evaluation import HeldOut, answer_of, num_found
from vl2.train.loss import next_token_loss
from vl2.train.preference import answer_log_probs, pair_losses
from vl2.train.stage import Stage

LOSS, ACCURACY = "held-out/loss", "held-out/preference_accuracy"
MOST_WATCHED = 64  # the most records for the held-out loss during training


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One model's scores on the held-out records, and its answers."""

    loss: float  # mean over the tokens of the answers
    exact_match: float
    box_accuracy: float | None  # the share of expected boxes found at IoU 0.5; None if no boxes are expected
    answers: tuple[str, ...]
    preferred: float | None = None  # the share of pairs whose chosen answer is likelier; None if not all are pairs

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scores:
        return cls(**{**values, "answers": tuple(values["answers"])})


def score(model: VL2, processor: Processor, records: Sequence[Record], *, max_new_tokens: int) -> Scores:
    """Answer the last turn of every record greedily, and score the answers."""
    answers = HeldOut("held-out", records, max_new_tokens=max_new_tokens).answers(model, processor)
    wanted = [answer_of(record) for record in records]
    matched = [one.strip() == other.strip() for one, other in zip(wanted, answers, strict=True)]
    boxes = [(parse_tolerant(one), parse_tolerant(other)) for one, other in zip(wanted, answers, strict=True)]
    num_wanted = sum(len(entry.boxes) for entries, _ in boxes for entry in entries)
    found = sum(num_found(*pair) for pair in boxes)
    return Scores(
        loss=answer_loss(model, processor, records),
        exact_match=sum(matched) / len(matched),
        box_accuracy=found / num_wanted if num_wanted else None,
        answers=tuple(answer.strip() for answer in answers),
        preferred=preferred_share(model, processor, records) if all(record.rejected for record in records) else None,
    )


class HeldOutLoss:
    """An `Evaluation` of the loss on the answers of the first held-out records, which needs no generation."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records[:MOST_WATCHED]

    def __call__(self, model: VL2, processor: Processor, step: int) -> dict[str, float]:
        return {LOSS: answer_loss(model, processor, self._records)}


@torch.no_grad()
def answer_loss(model: VL2, processor: Processor, records: Sequence[Record]) -> float:
    """Return the mean loss over the tokens that training would use. Records are processed one at a time."""
    total, count = 0.0, 0
    for record in records:
        sample = processor.encode(record.to_turns(), train=True, name=record.id)
        pack = pack_samples([sample], processor).to(model.device)
        states_SD = model.states(pack).states_BSD[0]
        summed, loss_n = next_token_loss(states_SD, pack.labels, model.language.lm_head.weight)
        total, count = total + float(summed), count + len(loss_n)
    return total / max(count, 1)


class HeldOutPreference:
    """An `Evaluation` of the preference loss of the first held-out pairs, and of the share with a positive margin."""

    def __init__(self, records: Sequence[Record], stage: Stage) -> None:
        self._records, self._stage = records[:MOST_WATCHED], stage

    @torch.no_grad()
    def __call__(self, model: VL2, processor: Processor, step: int) -> dict[str, float]:
        loss, positive = 0.0, 0
        for record in self._records:
            pack = _pair_pack(record, processor).to(model.device)
            pair = pair_losses(model, pack, model.states(pack).states_BSD[0], self._stage)
            loss, positive = loss + float(pair.loss_p), positive + int(pair.margin_p > 0)
        return {LOSS: loss / len(self._records), ACCURACY: positive / len(self._records)}


@torch.no_grad()
def preferred_share(model: VL2, processor: Processor, records: Sequence[Record]) -> float:
    """Return the share of pairs whose chosen answer has a higher probability than the rejected one."""
    count = 0
    for record in records:
        pack = _pair_pack(record, processor).to(model.device)
        states_SD = model.states(pack).states_BSD[0]
        chosen, rejected = answer_log_probs(states_SD, pack, model.language.lm_head.weight).tolist()
        count += chosen > rejected
    return count / len(records)


def _pair_pack(record: Record, processor: Processor) -> Packed:
    both = (record, record.with_rejected())
    return pack_samples([processor.encode(one.to_turns(), train=True, name=one.id) for one in both], processor)
