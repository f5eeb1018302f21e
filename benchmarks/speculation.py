"""Speculation beside decoding one by one: tokens per second of the same answers, in turn, and whether they are equal.

    python benchmarks/speculation.py nano tiny-random [--weights int4] [--pairs 5] [--tokens 200]

`tiny-random` may be any folder that `vl2.checkpoint.random_checkpoint` wrote, or a released checkpoint. Three tasks:

- reading: the expected answer is at hand, with a share of its tokens wrong, as a text layer or an OCR program gives it
- JSON: an answer under a schema whose keys are known
- boxes: an answer of labels and boxes alone

Weights at random say nothing sensible, so there the expected answer is what the model says without guesses.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import vl2
from vl2.infer.constraint import JsonSchema
from vl2.infer.constraint_boxes import WellFormedBoxes
from vl2.infer.engine.request import Job
from vl2.infer.engine.scheduler import EngineLimits, Scheduler
from vl2.infer.sampling import GenerateOptions
from vl2.infer.speculation import Speculation, TextLookup
from vl2.infer.vlm import VLM

PICTURE = Path(__file__).parents[1] / "examples" / "bill.png"
WRONG = (0.0, 0.02, 0.05, 0.1)
KEYS = ("company", "address", "date", "invoice_number", "currency", "subtotal", "tax", "total")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {key: {"type": "string", "maxLength": 12} for key in KEYS},
    "required": list(KEYS),
    "additionalProperties": False,
}


def run(
    vlm: VLM, options: GenerateOptions, expected: Sequence[int] | None = None
) -> tuple[list[int], float, Scheduler]:
    """Return the tokens of an answer, the seconds after its first token, and the scheduler."""
    content = [{"type": "image", "image": str(PICTURE)}, {"type": "text", "text": "Read this."}]
    sample = vlm.processor.encode([{"role": "user", "content": content}])
    scheduler = Scheduler(vlm.runner, vlm.processor.tokenizer, EngineLimits(max_num_seqs=1), reuse=vlm.reuse)
    task = scheduler.make_task(Job(sample=sample, options=options))
    scheduler.add(task)
    ids: list[int] = []
    while not ids:
        ids += [output.token_id for _, output in scheduler.step() if output.token_id is not None]
    if expected is not None:
        task.speculation = Speculation(lookup=TextLookup(expected, ()))
        task.speculation.lookup.add(ids[0])
    began = time.perf_counter()
    while scheduler.has_work:
        for _, output in scheduler.step():
            if output.error is not None:
                raise output.error
            assert output.token_id is not None
            ids.append(output.token_id)
    seconds = time.perf_counter() - began
    scheduler.close()
    return ids, seconds, scheduler


def compare(vlm: VLM, name: str, options: dict[str, Any], pairs: int, wrong: float | None = None) -> None:
    plain = GenerateOptions(**options, speculation=False)
    guessed = GenerateOptions(**options)
    first, _, _ = run(vlm, plain)
    expected = None
    if wrong is not None:
        rng = random.Random(1)
        num_ids = vlm.processor.tokenizer.num_ids
        expected = [rng.randrange(num_ids) if rng.random() < wrong else token_id for token_id in first]
    run(vlm, guessed, expected)
    ratios, rates, counts = [], [], None
    for _ in range(pairs):
        ids, alone_s, _ = run(vlm, plain)
        same, together_s, scheduler = run(vlm, guessed, expected)
        assert ids == same == first, "the answers differ"
        ratios.append(alone_s / together_s)
        rates.append(((len(ids) - 1) / alone_s, (len(ids) - 1) / together_s))
        counts = scheduler.totals
    assert counts is not None
    alone, together = (statistics.median(rate[i] for rate in rates) for i in (0, 1))
    print(
        f"{name:<28} {len(first):4} tokens  {alone:7.1f} -> {together:7.1f} tokens/s  x{statistics.median(ratios):.2f}"
        f"  ({min(ratios):.2f} to {max(ratios):.2f})  {counts.steps} steps, "
        f"{counts.accepted_tokens} of {counts.draft_tokens} guesses right",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    args = parser.parse_args()
    for model in args.models:
        vlm = vl2.load(model, dtype="bfloat16", weights=args.weights)
        if not vlm.runner.can_verify:
            raise SystemExit(f"{model}: {vlm.runner.name} decodes one by one: {'; '.join(vlm.runner.notes)}")
        eos_id = vlm.processor.tokenizer.eos_id
        print(f"{model}, {vlm.weights}", flush=True)
        long = {"max_new_tokens": args.tokens, "logit_bias": {eos_id: -100}}
        for wrong in WRONG:
            compare(vlm, f"reading, {wrong:.0%} expected wrongly", long, args.pairs, wrong)
        compare(vlm, "JSON", {"max_new_tokens": 400, "constraint": JsonSchema(SCHEMA)}, args.pairs)
        boxes = {"max_new_tokens": args.tokens, "constraint": WellFormedBoxes(only_boxes=True)}
        compare(vlm, "boxes", boxes, args.pairs)


if __name__ == "__main__":
    main()
