"""Evaluate a few tasks by generation during training, on the same items each time.

`TaskEvaluation` implements `Evaluation` of vl2.train; pass it to `train(recipe, evaluations=[...])`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vl2.errors import UserError
from vl2.eval.choose_items import limited
from vl2.eval.run_task import answers
from vl2.eval.task import DataSource, Item, Protocol, Task
from vl2.eval.task_catalog import find_task
from vl2.infer.vlm import VLM

# Tasks that need no files, for the built-in model.
DRAWN = ("text_line_en", "count_objects", "presence", "locate_objects", "chart_values", "table_values")


class TaskEvaluation:
    """Runs tasks on a fixed sample of their items, and returns the headline figure of each."""

    def __init__(
        self,
        names: Sequence[str] = DRAWN,
        source: DataSource | None = None,
        *,
        limit: int = 32,
        batch_size: int = 8,
        max_new_tokens: int | None = None,
    ) -> None:
        """Read the items once. Raise UserError for an unknown task or one without items."""
        self._batch_size = batch_size
        self._tasks: list[tuple[Task, str, Protocol, list[Item]]] = []
        for name in names:
            task = find_task(name)
            protocol_name, protocol = task.protocol()
            if max_new_tokens is not None:
                protocol = replace(protocol, max_new_tokens=max_new_tokens)
            items = list(limited(task, source or DataSource(), limit))
            if not items:
                raise UserError(f"{name} has no items to evaluate during training")
            self._tasks.append((task, protocol_name, protocol, items))

    def __call__(self, model: Any, processor: Any, step: int) -> Mapping[str, float]:
        """Return the figures by `TASK/FIGURE`. The model is a VL2 in evaluation mode and is not modified."""
        vlm = VLM(model, processor, folder=Path())
        figures = {}
        for task, protocol_name, protocol, items in self._tasks:
            results = list(answers(vlm, protocol, items, batch_size=self._batch_size))
            name, figure = next(iter(task.metric_of(protocol_name)(results).items()))
            figures[f"{task.name}/{name}"] = figure
        return figures
