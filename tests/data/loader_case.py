"""A small loader over real pictures, and a programme that starts it and kills it over and over.

    python -m tests.data.loader_case LOG KILLS SEED

Every life of the loader goes on from the last whole line of LOG, and writes a line per step: what it got, and the
state behind it.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

import vl2
from vl2.data.index import build_index
from vl2.data.loader import LoadedStep, Loader, LoaderOptions
from vl2.data.mixture import Group, Mixture
from vl2.data.pack import Packing
from vl2.data.pack_plan import PackPlan, PlanOptions
from vl2.data.record import Message, Part, Record, StoredImage
from vl2.process.processor import Processor

SEQ_LEN = 384
MIXTURE = Mixture(groups=(Group(share=0.7, categories={"caption": 1.0}), Group(share=0.3, categories={"text": 1.0})))


def picture(rng: random.Random, kind: str = "PNG") -> tuple[bytes, int, int]:
    """Return the bytes of a one-coloured picture, its width and its height."""
    size = rng.randint(40, 400), rng.randint(40, 400)
    color = rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, kind)
    return file.getvalue(), *size


def make_record(category: str, number: int) -> Record:
    rng = random.Random(f"{category} {number}")
    answer = " ".join(rng.choice(("red", "a", "small", "house", "and", "no")) for _ in range(rng.randint(3, 60)))
    images: tuple[StoredImage, ...] = ()
    if category != "text":
        data, width, height = picture(rng)
        images = (StoredImage(data=data, width=width, height=height),)
    asked = (*(Part(image=i) for i in range(len(images))), Part(text="What is it?"))
    return Record(
        id=f"{category}-{number}",
        source="test",
        category=category,
        language="en",
        licence="CC0-1.0",
        messages=(Message(role="user", parts=asked), Message(role="assistant", parts=(Part(text=answer),))),
        images=images,
    )


def make_processor() -> Processor:
    return Processor.from_folder(Path(vl2.__file__).parent / "nano")


def make_stores() -> dict[str, list[Record]]:
    return {
        "photos": [make_record("caption", i) for i in range(40)],
        "web": [make_record("text", i) for i in range(30)],
    }


def make_plan(stores: dict[str, list[Record]], processor: Processor) -> PackPlan:
    sources = [s for name, store in stores.items() for s in build_index(name, store, processor).sources()]
    options = PlanOptions(packs_per_step=5, packing=Packing(seq_len=SEQ_LEN, max_tiles=4), window_packs=16)
    return PackPlan(sources, MIXTURE, options)


def make_loader(rank: int = 0, num_ranks: int = 1, **options: Any) -> Loader:
    stores, processor = make_stores(), make_processor()
    return Loader(make_plan(stores, processor), stores, processor, rank, num_ranks, LoaderOptions(**options))


def names(step: LoadedStep) -> list[list[str]]:
    return [list(packed.names) for packed in step.packs]


def whole_lines(log: Path) -> list[bytes]:
    """Return the lines that were written to their end."""
    return log.read_bytes().split(b"\n")[:-1] if log.exists() else []


def live(loader: Loader, log: Path) -> None:
    """Load for ever, from where the log ends."""
    lines = whole_lines(log)
    if lines:
        loader.load_state_dict(json.loads(lines[-1])["state"])
    with log.open("ab", buffering=0) as file:
        # A line cut off by the last death goes at once: rewritten, the log would be empty for one who dies meanwhile.
        file.truncate(sum(len(line) + 1 for line in lines))
        for step in loader:
            line = {"step": step.number, "names": names(step), "state": loader.state_dict()}
            file.write(json.dumps(line).encode() + b"\n")


def die(loader: Loader, log: Path, rng: random.Random) -> None:
    """Give the loader one life: kill it at a random moment after it has done some steps."""
    wanted = len(whole_lines(log)) + rng.randint(0, 3)
    child = os.fork()
    if child == 0:
        live(loader, log)
    while len(whole_lines(log)) < wanted:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the loader ended by itself"
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def main() -> None:
    log, kills, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    loader = make_loader(num_workers=2, read_ahead=6)
    for _ in range(kills):
        die(loader, log, rng)


if __name__ == "__main__":
    main()
