"""Draw three small tasks with private things, fine-tune on each with the default settings, and count right answers.

    symbols  name one of six invented symbols
    counter  read the four digits of a counter
    boxes    find an invented thing among other shapes
    wording  prefer one wording of an answer to another, by preference optimization on pairs

Training and test pictures come from different seeds. The test pictures are never part of what `vl2 finetune` sees, so
its own choice of when to stop cannot favor them.

    python benchmarks/toy_tasks.py symbols counter boxes --seeds 0 1 --to toys

Takes some ten minutes for each training on two free cores. `--draw-only` writes the pictures and stops.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIDE = 168  # px, one tile of the built-in model
TEST_SEED = 1_000_000

Row = dict[str, str]
Draw = Callable[[random.Random], tuple[Image.Image, Row]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One toy task: how its pictures are drawn, how many there are, and the share of right answers to reach."""

    draw: Draw
    num_train: int
    goal: float
    flags: tuple[str, ...] = ()  # of vl2 finetune
    num_test: int = 40


def symbol(rng: random.Random) -> tuple[Image.Image, Row]:
    """Draw one of six symbols, in any dark color, at any place, from 60 to 130 px, tilted by up to 15 degrees."""
    name = rng.choice(list(SYMBOLS))
    picture = _paper(rng)
    size = rng.uniform(60, 130)
    center = rng.uniform(size / 2 + 4, SIDE - size / 2 - 4), rng.uniform(size / 2 + 4, SIDE - size / 2 - 4)
    angle = math.radians(rng.uniform(-15, 15))
    draw, ink, width = ImageDraw.Draw(picture), _ink(rng), max(3, round(size / 14))

    def place(x: float, y: float) -> tuple[float, float]:
        dx, dy = (x - 0.5) * size, (y - 0.5) * size
        return (
            center[0] + dx * math.cos(angle) - dy * math.sin(angle),
            center[1] + dx * math.sin(angle) + dy * math.cos(angle),
        )

    for stroke in SYMBOLS[name]:
        if len(stroke) == 1:
            (x, y), r = place(*stroke[0]), size / 9
            draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)
        else:
            draw.line([place(*point) for point in stroke], fill=ink, width=width, joint="curve")
    return picture, {"question": "Which sign is this?", "answer": name}


# Strokes in a unit square; a single point is a dot.
SYMBOLS: dict[str, list[list[tuple[float, float]]]] = {
    "velm": [[(0.1, 0.9), (0.5, 0.1), (0.9, 0.9)], [(0.5, 0.75)]],
    "orrin": [[(0.1, 0.1), (0.9, 0.1), (0.1, 0.9), (0.9, 0.9)]],
    "tasp": [[(0.5, 0.0), (0.5, 1.0)], [(0.1, 0.3), (0.9, 0.3)], [(0.1, 0.6), (0.9, 0.6)]],
    "kudo": [[(0.2, 0.0), (0.2, 1.0)], [(0.8, 0.0), (0.8, 1.0)], [(0.5, 0.3)], [(0.5, 0.7)]],
    "mirn": [[(0.0, 0.5), (0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)], [(0.0, 0.5), (1.0, 0.5)]],
    "plov": [[(0.1, 0.1), (0.1, 0.9), (0.9, 0.9)], [(0.4, 0.1), (0.4, 0.6), (0.9, 0.6)], [(0.75, 0.25)]],
}


def counter(rng: random.Random) -> tuple[Image.Image, Row]:
    """Draw a counter: a case with four drums in a window, which show a digit each; the last drum is red."""
    number = "".join(rng.choice("0123456789") for _ in range(4))
    picture = _paper(rng)
    draw = ImageDraw.Draw(picture)
    drum = rng.randint(24, 34)
    width, height = 4 * drum + 12, round(drum * 1.4) + 8
    left, top = rng.randint(4, SIDE - width - 4), rng.randint(20, SIDE - height - 24)
    case = tuple(rng.randint(90, 200) for _ in range(3))
    draw.rounded_rectangle((left - 4, top - 14, left + width + 3, top + height + 16), 8, fill=case)
    draw.rectangle((left, top, left + width, top + height), fill=(25, 25, 25))
    font = ImageFont.load_default(round(drum * 1.15))
    for place, digit in enumerate(number):
        x = left + 6 + place * drum
        draw.rectangle(
            (x + 1, top + 4, x + drum - 2, top + height - 4), fill=(170, 30, 30) if place == 3 else (50, 50, 60)
        )
        draw.text((x + drum / 2, top + height / 2 + rng.randint(-2, 2)), digit, font=font, fill="white", anchor="mm")
    draw.text((left + width / 2, top + height + 8), "m3", font=ImageFont.load_default(11), fill="black", anchor="mm")
    return picture, {"question": "What does the counter show?", "answer": number}


def thing(rng: random.Random) -> tuple[Image.Image, Row]:
    """Draw a `snib`, a body with two ears and a striped belly, among three to five other shapes; give its box."""
    picture = _paper(rng)
    draw = ImageDraw.Draw(picture)
    taken: list[tuple[float, float, float, float]] = []
    box = _free_box(rng, taken, 34, 60)
    _snib(draw, box, rng)
    for _ in range(rng.randint(3, 5)):
        other = _free_box(rng, taken, 22, 46)
        shape = rng.choice([draw.ellipse, draw.rectangle])
        shape(other, fill=_ink(rng))
    x0, y0, x1, y1 = (str(round(value)) for value in box)
    return picture, {"label": "snib", "x0": x0, "y0": y0, "x1": x1, "y1": y1}


def wording(rng: random.Random) -> tuple[Image.Image, Row]:
    """Draw one shape of one color; the two answers say the same in different words."""
    picture = _paper(rng)
    draw = ImageDraw.Draw(picture)
    color, shape = rng.choice(list(COLORS)), rng.choice(["circle", "rectangle"])
    box = _free_box(rng, [], 50, 100)
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=COLORS[color])
    chosen, rejected = f"The {shape} is {color}.", f"a {color} {shape}"
    return picture, {"question": "What is in the picture?", "answer": chosen, "rejected": rejected}


COLORS = {"red": (210, 30, 30), "green": (30, 150, 50), "blue": (40, 60, 210), "black": (20, 20, 20)}


def _snib(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], rng: random.Random) -> None:
    x0, y0, x1, y1 = box
    width, height, ink = x1 - x0, y1 - y0, _ink(rng)
    for side in (0.0, 0.6):
        ear = [
            (x0 + width * side, y0 + height * 0.4),
            (x0 + width * (side + 0.2), y0),
            (x0 + width * (side + 0.4), y0 + height * 0.4),
        ]
        draw.polygon(ear, fill=ink)
    draw.ellipse((x0, y0 + height * 0.25, x1, y1), fill=ink)
    for line in (0.5, 0.65, 0.8):
        draw.line((x0 + width * 0.2, y0 + height * line, x1 - width * 0.2, y0 + height * line), fill="white", width=2)


def _free_box(
    rng: random.Random, taken: list[tuple[float, float, float, float]], least: int, most: int
) -> tuple[float, float, float, float]:
    """Return a box that overlaps no taken one, and take it."""
    while True:
        width, height = rng.randint(least, most), rng.randint(least, most)
        x, y = rng.randint(2, SIDE - width - 2), rng.randint(2, SIDE - height - 2)
        box = (float(x), float(y), float(x + width), float(y + height))
        if all(box[2] < other[0] or other[2] < box[0] or box[3] < other[1] or other[3] < box[1] for other in taken):
            taken.append(box)
            return box


def _paper(rng: random.Random) -> Image.Image:
    light = rng.randint(215, 255)
    return Image.new("RGB", (SIDE, SIDE), (light, light, rng.randint(200, light)))


def _ink(rng: random.Random) -> tuple[int, int, int]:
    return rng.randint(0, 170), rng.randint(0, 150), rng.randint(0, 170)


TASKS = {
    "symbols": Task(draw=symbol, num_train=60, goal=0.9),
    "counter": Task(draw=counter, num_train=300, goal=0.7),
    "boxes": Task(draw=thing, num_train=60, goal=0.7),
    "wording": Task(draw=wording, num_train=60, goal=0.9, flags=("--preference",)),
}


def draw_set(task: Task, folder: Path, count: int, seed: int) -> Path:
    """Write pictures and the table that asks about them, and return the folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for number in range(count):
        picture, row = task.draw(random.Random(f"{seed}/{number}"))
        picture.save(folder / "images" / f"{number:03}.png")
        rows.append({"image": f"images/{number:03}.png", **row})
    with (folder / "questions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return folder


def score(adapter: Path, test: Path) -> float:
    """Return the share of right answers to the test pictures: exact match, boxes at IoU 0.5, or pairs preferred."""
    import vl2
    from vl2.data.store import Problem
    from vl2.datasets.own_data import read_own
    from vl2.train.finetune.score import score as score_records

    records = [found.record for found in read_own(str(test)) if not isinstance(found, Problem)]
    vlm = vl2.load("nano", adapter=adapter)
    scores = score_records(vlm.model, vlm.processor, records, max_new_tokens=32)
    return main_score(scores.to_dict())


def main_score(scores: dict[str, Any]) -> float:
    found = (scores[name] for name in ("preferred", "box_accuracy", "exact_match"))
    return next(float(score) for score in found if score is not None)


def run(name: str, seed: int, folder: Path, extra: list[str]) -> dict[str, object]:
    """Draw, fine-tune with the defaults and `extra` arguments, and count right answers to the test pictures."""
    task = TASKS[name]
    here = folder / f"{name}-{seed}"
    train = draw_set(task, here / "train", task.num_train, seed)
    test = draw_set(task, here / "test", task.num_test, TEST_SEED + seed)
    command = [sys.executable, "-m", "vl2", "finetune", str(train), "--out", str(here / "tuned"), *task.flags, *extra]
    command += ["--seed", str(seed), "--max-new-tokens", "32"]
    started = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - started
    report = json.loads((here / "tuned" / "report.json").read_text(encoding="utf-8"))
    after = score(Path(report["trained"]), test)
    result = {"task": name, "seed": seed, "steps": report["step"], "minutes": round(seconds / 60, 1)}
    result |= {"before": main_score(report["before"]), "held_out": main_score(report["after"])}
    result |= {"right": after, "goal": task.goal}
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--to", type=Path, required=True, help="a new folder")
    parser.add_argument("--draw-only", action="store_true")
    arguments, extra = parser.parse_known_args()  # further flags go to vl2 finetune
    if arguments.draw_only:
        for name in arguments.tasks:
            draw_set(TASKS[name], arguments.to / name, TASKS[name].num_train, arguments.seeds[0])
        return
    results = [run(name, seed, arguments.to, extra) for name in arguments.tasks for seed in arguments.seeds]
    (arguments.to / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if all(result["right"] >= result["goal"] for result in results) else 1)


if __name__ == "__main__":
    main()
