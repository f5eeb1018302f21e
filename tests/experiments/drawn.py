"""Records that a source draws, and what is asked in them."""

from __future__ import annotations

from vl2.data.record import Record
from vl2.synth.source import Source, generate


def records(source: Source, count: int = 40) -> list[Record]:
    return list(generate(source, count, seed=5))


def turns(record: Record) -> list[tuple[str, str]]:
    texts = [message.parts[-1].text or "" for message in record.messages]
    return list(zip(texts[::2], texts[1::2], strict=True))
