"""Evaluate a model during training, with greedy answers to held-out records or a task of `vl2.eval`.

The scores of records are exact match of the whole answer and, for answers with boxes, the share of expected boxes that
the model gives with the same label and an intersection over union of at least 0.5. These scores serve to monitor a run.
To report results of a model, run `vl2 eval` on all items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vl2.data.index import RecordStore
from vl2.data.record import Record
from vl2.data.store import open_random
from vl2.errors import UserError
from vl2.infer.generate import generate
from vl2.infer.sampling import GenerateOptions
from vl2.infer.sequence import Limits, answer_budget
from vl2.model import VL2
from vl2.process.grounding import Box999, LabeledBoxes, parse_tolerant
from vl2.process.processor import Processor
from vl2.process.sample import Sample
from vl2.runtime import choose_runner
from vl2.train.recipe import EvaluationTask

LEAST_OVERLAP = 0.5


class Evaluation(Protocol):
    """An evaluation, called on the first rank with the model in evaluation mode.

    It must change neither weights nor random states.
    """

    def __call__(self, model: VL2, processor: Processor, step: int) -> Mapping[str, float]: ...


def open_evaluation(task: EvaluationTask) -> Evaluation:
    """Return the evaluation of a recipe's task. Raise UserError if it has no items or the task is unknown."""
    return HeldOut.open(task) if task.path else Benchmark(task)


class Benchmark:
    """Evaluates a sample of a `vl2.eval` task. Percentages are converted to fractions of 1."""

    def __init__(self, task: EvaluationTask) -> None:
        # Imported here because most runs have no benchmarks.
        from vl2.eval.during_training import TaskEvaluation
        from vl2.eval.task import DataSource
        from vl2.eval.task_catalog import find_task

        self._scale = 0.01 if find_task(task.name).unit == "%" else 1.0
        self._ask = TaskEvaluation(
            (task.name,),
            DataSource(data=Path(task.data) if task.data else None),
            limit=task.num_records,
            max_new_tokens=task.max_new_tokens,
        )

    def __call__(self, model: VL2, processor: Processor, step: int) -> dict[str, float]:
        return {name: value * self._scale for name, value in self._ask(model, processor, step).items()}


class HeldOut:
    """Evaluates the answers to the last turn of held-out records."""

    def __init__(self, name: str, records: Sequence[Record], *, max_new_tokens: int = 128) -> None:
        self.name = name
        self._records = records
        self._options = GenerateOptions(max_new_tokens=max_new_tokens)

    @classmethod
    def open(cls, task: EvaluationTask) -> HeldOut:
        """Read the records of a task. Raise UserError if there are none, or if one is damaged or has no answer."""
        store: RecordStore = open_random(task.path)
        records = [store[i] for i in range(min(task.num_records, len(store)))]
        if not records:
            raise UserError(f"the evaluation {task.name} has no records in {task.path}")
        for record in records:
            if not is_answered(record):
                role = record.messages[-1].role
                raise UserError(
                    f"the evaluation {task.name} cannot ask {record.id}: its last message must be the assistant's, "
                    f"got a {role}"
                )
        return cls(task.name, records, max_new_tokens=task.max_new_tokens)

    def check(self, processor: Processor, context: int) -> None:
        """Raise UserError if a record cannot be asked, so that the run fails before its first step and not after hours.

        `context` is the maximum number of tokens of a prompt and its answer.
        """
        for record in self._records:
            try:
                answer_budget(_prompt(record, processor), self._options, Limits(max_context=context))
            except UserError as error:
                raise UserError(f"the evaluation {self.name} cannot ask {record.id}: {error}") from None

    def __call__(self, model: VL2, processor: Processor, step: int) -> dict[str, float]:
        wanted = [answer_of(record) for record in self._records]
        given = self.answers(model, processor)
        matched = [one.strip() == other.strip() for one, other in zip(wanted, given, strict=True)]
        scores = {f"{self.name}/exact_match": sum(matched) / len(matched)}
        boxes = [(parse_tolerant(one), parse_tolerant(other)) for one, other in zip(wanted, given, strict=True)]
        num_wanted = sum(len(entry.boxes) for wanted_boxes, _ in boxes for entry in wanted_boxes)
        if num_wanted:
            scores[f"{self.name}/box_accuracy"] = sum(num_found(*pair) for pair in boxes) / num_wanted
        return scores

    def answers(self, model: VL2, processor: Processor) -> list[str]:
        """Return the answers to all records. Records are processed in batches to limit the images in memory."""
        limits = Limits(max_context=model.config.language_config.max_position_embeddings)
        answers: list[str] = []
        runner = choose_runner(model)
        for start in range(0, len(self._records), limits.max_num_seqs):
            samples = [_prompt(record, processor) for record in self._records[start : start + limits.max_num_seqs]]
            options = [self._options] * len(samples)
            pieces: list[list[str]] = [[] for _ in samples]
            for event in generate(runner, processor.tokenizer, samples, options, limits=limits):
                pieces[event.request].append(event.piece)
            answers += ["".join(piece) for piece in pieces]
        return answers


def is_answered(record: Record) -> bool:
    """Return whether the last message is an answer; a document has none."""
    return record.messages[-1].role == "assistant"


def _prompt(record: Record, processor: Processor) -> Sample:
    """Encode all messages of a record except the last one."""
    return processor.encode(record.to_turns()[:-1], name=record.id)


def answer_of(record: Record) -> str:
    """Return the last message in the form that the model is trained to write."""
    return "".join(record.with_boxes(part.text) for part in record.messages[-1].parts if part.text is not None)


def num_found(wanted: Sequence[LabeledBoxes], given: Sequence[LabeledBoxes]) -> int:
    """Count the expected boxes that were found; each given box can match one expected box only."""
    free = [(entry.label, box) for entry in given for box in entry.boxes]
    count = 0
    for entry in wanted:
        for box in entry.boxes:
            fitting = [one for one in free if one[0] == entry.label and overlap(box, one[1]) >= LEAST_OVERLAP]
            if fitting:
                free.remove(max(fitting, key=lambda one: overlap(box, one[1])))
                count += 1
    return count


def overlap(one: Box999, other: Box999) -> float:
    """Return the intersection over union; 0 if neither box has an area."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    union = sum(max(b[2] - b[0], 0) * max(b[3] - b[1], 0) for b in (one, other)) - shared
    return shared / union if union > 0 else 0.0
