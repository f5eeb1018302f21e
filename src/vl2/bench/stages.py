"""What is measured, in which order, and how each figure is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vl2.bench.work import Bytes, Work, decode_work, encode_work, load_work, prefill_work
from vl2.config import ModelConfig
from vl2.errors import UserError

Unit = Literal["s", "s/tile", "tokens/s", "GB"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One measured thing. Its runs are seconds (bytes for memory); `amount` turns them into the unit."""

    name: str
    group: str  # what --only names
    task: dict[str, Any]
    unit: Unit
    amount: float = 1.0  # tiles or tokens in a run
    work: Callable[[Bytes], Work] | None = None  # None: no limit is known

    def figure(self, run: float) -> float:
        """Return a run in the stage's unit."""
        if self.unit == "tokens/s":
            return self.amount / run
        return run / 1e9 if self.unit == "GB" else run / self.amount


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    tiles: int = 5
    prompt: int = 1000
    short: int = 32  # tokens of context
    long: int = 1050
    steps: int = 24
    rounds: int = 3

    @classmethod
    def quick(cls) -> Sizes:
        return cls(tiles=1, prompt=256, short=16, long=300, steps=4, rounds=1)


BATCHES = (1, 4, 16)
GROUPS = ("encode", "prefill", "decode", "first-token", "memory")  # load is always measured


def make_stages(config: ModelConfig, sizes: Sizes, only: Sequence[str] = ()) -> list[Stage]:
    """Return the stages of a model, in the order in which they are run. UserError for a group that there is not."""
    for group in only:
        if group not in GROUPS:
            raise UserError(f"there is no stage {group}: the stages are {', '.join(GROUPS)}")
    context = config.language_config.max_position_embeddings
    longest = max(sizes.prompt, sizes.long + sizes.steps)
    if longest > context:
        raise UserError(f"{longest} tokens do not fit into this model's context of {context}")

    def decode(batch: int, length: int, steps: int) -> Stage:
        return Stage(
            name=f"decode, batch {batch}, {length} tokens before",
            group="decode",
            task={"do": "decode", "batch": batch, "context": length, "steps": steps},
            unit="tokens/s",
            amount=batch * steps,
            work=lambda held: decode_work(config, held, batch=batch, context=length, steps=steps),
        )

    side = 2 * config.vision_config.image_size
    shown = {"side": side}
    stages = [
        Stage(
            name=f"encode, {sizes.tiles} tiles",
            group="encode",
            task={"do": "encode", "tiles": sizes.tiles},
            unit="s/tile",
            amount=sizes.tiles,
            work=lambda held: encode_work(config, held, sizes.tiles),
        ),
        Stage(
            name=f"prefill, {sizes.prompt} tokens",
            group="prefill",
            task={"do": "prefill", "tokens": sizes.prompt},
            unit="s",
            work=lambda held: prefill_work(config, held, sizes.prompt),
        ),
        *(decode(batch, sizes.short, sizes.steps) for batch in BATCHES),
        decode(1, sizes.long, sizes.steps),
        Stage(
            name=f"first token, image of {side} x {side}",
            group="first-token",
            task={"do": "first_token", **shown},
            unit="s",
            work=lambda held: _image_work(config, held),
        ),
        Stage(name="another question about it", group="first-token", task={"do": "second_question", **shown}, unit="s"),
        Stage(name="peak memory", group="memory", task={"do": "memory"}, unit="GB"),
    ]
    return [stage for stage in stages if not only or stage.group in only]


def load_stage(task: dict[str, Any]) -> Stage:
    return Stage(name="load", group="load", task=task, unit="s", work=load_work)


def _image_work(config: ModelConfig, held: Bytes) -> Work:
    """A 2 x 2 grid and a dozen words."""
    side = config.tokens_per_side
    encoder = encode_work(config, held, 5)
    prompt = prefill_work(config, held, side * (side + 1) + 1 + 2 * side * (2 * side + 1) + 12)
    return Work(
        read_bytes=encoder.read_bytes + prompt.read_bytes,
        encoder=encoder.encoder,
        language=prompt.language,
        rest=encoder.rest + prompt.rest,
    )
