"""Ask a model items greedily, in batches, and score each answer by the rules as soon as it ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from vl2.errors import UserError
from vl2.eval.task import REFUSED, Item, Protocol, Result
from vl2.infer.generate import generate
from vl2.infer.reply import Reply
from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import VLM, ReplyBuilder
from vl2.process.conversation import ImageRef, Turn, arrange
from vl2.process.sample import Sample

WINDOW = 4  # batches encoded at once: a row that ends early is refilled within it


def answers(vlm: VLM, protocol: Protocol, items: Iterable[Item], *, batch_size: int) -> Iterator[Result]:
    """Yield a result per item, each as soon as its answer ends: within a window of items in any order."""
    asked = prepared(vlm, protocol, batch_size)
    options = GenerateOptions(max_new_tokens=protocol.max_new_tokens)
    waiting = iter(items)
    while window := list(islice(waiting, WINDOW * batch_size)):
        samples: list[Sample] = []
        sampled: list[Item] = []
        for item in window:
            try:
                sample = asked.processor.encode(protocol.ask(item), name=item.id)
                if len(sample.input_ids) >= asked.limits.max_context:
                    raise UserError(
                        f"the prompt has {len(sample.input_ids)} tokens, the context is {asked.limits.max_context}"
                    )
            except UserError as error:
                yield refused(protocol, item, str(error))
            else:
                samples.append(sample)
                sampled.append(item)
        for index, reply in _replies(asked, samples, options):
            yield scored(protocol, sampled[index], reply)


def _replies(vlm: VLM, samples: list[Sample], options: GenerateOptions) -> Iterator[tuple[int, Reply]]:
    builders = [ReplyBuilder(sample) for sample in samples]
    tokenizer = vlm.processor.tokenizer
    for event in generate(vlm.runner, tokenizer, samples, [options] * len(samples), limits=vlm.limits):
        builders[event.request].add(event)
        if event.finish_reason is not None:
            yield event.request, builders[event.request].build()


def prepared(vlm: VLM, protocol: Protocol, batch_size: int) -> VLM:
    """Return the same model with the tiles and rows that the run wants."""
    processor = vlm.processor
    if protocol.max_tiles is not None and processor.max_tiles is None:
        processor = processor.with_tiling(processor.tiling, protocol.max_tiles)
    limits = replace(vlm.limits, max_rows=batch_size)
    return VLM(vlm.model, processor, folder=vlm.folder, limits=limits, runner=vlm.runner)


def scored(protocol: Protocol, item: Item, reply: Reply) -> Result:
    score = protocol.score(item, reply.text)
    return Result(
        id=item.id,
        part=item.part,
        cluster=item.cluster,
        prompt=prompt_text(protocol.ask(item)),
        answer=reply.text,
        read=score.read,
        gold=item.gold,
        score=score.value,
        is_undecided=score.is_undecided,
        finish_reason=reply.finish_reason,
        prompt_tokens=reply.usage.prompt_tokens,
        completion_tokens=reply.usage.completion_tokens,
    )


def refused(protocol: Protocol, item: Item, why: str) -> Result:
    """Return the result of an item that cannot be asked: it counts as wrong, and one item does not end a long run."""
    return Result(
        id=item.id,
        part=item.part,
        cluster=item.cluster,
        prompt=item.question,
        answer="",
        read=why,
        gold=item.gold,
        score=0.0,
        is_undecided=False,
        finish_reason=REFUSED,
        prompt_tokens=0,
        completion_tokens=0,
    )


def prompt_text(conversation: Sequence[Turn]) -> str:
    """Return a conversation as text, `<image>` where a picture stands."""
    turns = arrange(conversation)
    said = ["".join("<image>" if isinstance(p, ImageRef) else p for p in turn.pieces) for turn in turns]
    if len(turns) == 1:
        return said[0]
    return "\n\n".join(f"{turn.role}: {text}" for turn, text in zip(turns, said, strict=True) if text)
