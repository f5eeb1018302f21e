"""The held-out tasks on pictures of others: NLVR, SROIE, photographs, and the demo's pictures asked in other words."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from PIL import Image

from experiments.nano import splits
from experiments.nano.held_out import phrasings
from experiments.nano.held_out.items import phrase, png, protocol, rng_of
from experiments.nano.held_out.scoring import (
    numbers_of,
    score_admission,
    score_count,
    score_date,
    score_number,
    score_receipt_line,
    score_words,
)
from vl2.errors import UserError
from vl2.eval.protocols import score_first_box, score_yes_no
from vl2.eval.public_data import read_rows
from vl2.eval.task import DataSource, Item, LeftOut, Score, Task, mean_score
from vl2.infer.prompts import locate_prompt

ROOT = Path(__file__).parents[3]
OF_TRAINING = LeftOut(why="of the part that training takes", is_of_other_split=True)
LINES_OF_RECEIPT, LEAST_LINE_PX, MARGIN_PX = 4, 10, 5
QUESTIONS_OF_PHOTO = 5


def _rows(source: DataSource, name: str, *columns: str) -> Iterator[dict[str, Any]]:
    if source.data is None or not (source.data / name).is_dir():
        raise UserError(f"{name}/ with Parquet files is missing in {source.data}")
    return read_rows(source.data / name, ("*",), columns)


def _read_nlvr(task: Task, source: DataSource) -> Iterator[Item | LeftOut]:
    for row in _rows(source, "nlvr", "id", "group", "image", "sentence", "label"):
        if not splits.is_test_scene(row["group"]):
            yield OF_TRAINING
            continue
        question = phrase(rng_of(task.name, row["group"]), phrasings.STATEMENT, "en", sentence=row["sentence"].strip())
        gold = "yes" if row["label"] else "no"
        id = str(row["id"])
        yield Item(id=id, question=question, images=(row["image"],), gold=gold, part=gold, cluster=str(row["group"]))


def _receipts(source: DataSource) -> Iterator[tuple[dict[str, Any], str] | LeftOut]:
    """Yield the receipts of the tests' shops, with the shop."""
    for row in _rows(source, "sroie", "id", "image", "lines", "company", "date", "total"):
        shop = str(row["company"] or row["id"])
        yield (row, shop) if splits.is_test_shop(shop) else OF_TRAINING


def _read_receipt_lines(task: Task, source: DataSource) -> Iterator[Item | LeftOut]:
    for found in _receipts(source):
        if isinstance(found, LeftOut):
            yield found
            continue
        row, shop = found
        rng = Random(f"{task.name}/{row['id']}")
        with Image.open(io.BytesIO(row["image"])) as opened:
            image = opened.convert("RGB")
        lines = [
            line for line in row["lines"] if line["y1"] - line["y0"] >= LEAST_LINE_PX and re.search(r"\w", line["text"])
        ]
        for number, line in enumerate(rng.sample(lines, min(LINES_OF_RECEIPT, len(lines)))):
            left, top, right, bottom = (line[side] for side in ("x0", "y0", "x1", "y1"))
            box = (left - MARGIN_PX, top - 2, right + MARGIN_PX, bottom + 2)
            cut = image.crop((max(0, box[0]), max(0, box[1]), min(image.width, box[2]), min(image.height, box[3])))
            yield Item(
                id=f"{row['id']}-{number}",
                question=phrase(rng, phrasings.RECEIPT_LINE, "en"),
                images=(png(cut),),
                gold=line["text"],
                part="to 24 letters" if len(line["text"]) <= 24 else "longer",
                cluster=shop,
            )


def _read_receipt_fields(task: Task, source: DataSource) -> Iterator[Item | LeftOut]:
    for found in _receipts(source):
        if isinstance(found, LeftOut):
            yield found
            continue
        row, shop = found
        rng = Random(f"{task.name}/{row['id']}")
        for field, phrases in (("total", phrasings.RECEIPT_TOTAL), ("date", phrasings.RECEIPT_DATE)):
            if row[field] and (field == "date" or len(numbers_of(row[field])) == 1):
                yield Item(
                    id=f"{row['id']}-{field}",
                    question=phrase(rng, phrases, "en"),
                    images=(row["image"],),
                    gold=f"{numbers_of(row[field])[0]:.2f}" if field == "total" else row[field],
                    part=field,
                    cluster=shop,
                )


def _score_field(item: Item, answer: str) -> Score:
    return (score_date if item.part == "date" else score_number)(item, answer)


def _read_photos(task: Task, source: DataSource) -> Iterator[Item | LeftOut]:
    """Yield questions that no picture answers, about photographs that training does not show."""
    found: list[tuple[str, str, bytes]] = [(path.stem, "of packages", path.read_bytes()) for path in _package_photos()]
    if source.data is not None and (source.data / "photos").is_dir():
        for row in _rows(source, "photos", "id", "source", "image"):
            if splits.is_test_photo(row["id"]):
                found.append((row["id"], row["source"], row["image"]))
    for id, part, image in found:
        rng = Random(f"{task.name}/{id}")
        number = 2 * QUESTIONS_OF_PHOTO if part == "of packages" else 1
        for n, question in enumerate(rng.sample(phrasings.UNANSWERABLE, number)):
            yield Item(id=f"{id}-{n}", question=question, images=(image,), gold="cannot tell", part=part, cluster=id)


@cache
def _package_photos() -> tuple[Path, ...]:
    """Return photographs that packages carry: those of scikit-image that are the tests', and one of matplotlib."""
    try:
        import skimage.data  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise UserError(
            "photographs come from scikit-image: pip install -r experiments/nano/held_out/requirements.txt"
        ) from None
    from matplotlib import get_data_path

    folder = Path(skimage.data.__file__).parent
    kept = [path for path in sorted(folder.glob("*.[pj][np]g")) if splits.is_test_photo(path.name)]
    photos = [path for path in kept if path.stem in PHOTOGRAPHS]
    return (*photos, Path(get_data_path()) / "sample_data" / "grace_hopper.jpg")


# Of scikit-image, what is a photograph of things that people know.
PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field", "moon",
    "motorcycle_left", "rocket",
)  # fmt: skip


@cache
def _examples() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_examples", ROOT / "tools" / "draw_examples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _read_demo(task: Task, source: DataSource) -> Iterator[Item]:
    """Yield the questions that the examples answer, in other words; gold is what `tools/draw_examples.py` draws."""
    right = {(picture, question): answer for picture, question, answer in _examples().questions()}
    number = 0
    for (picture, asked), phrases in phrasings.DEMO.items():
        names = [name for name in _names(picture) if (picture, asked.format(name=name)) in right] or [""]
        for phrase_number, words in enumerate(phrases):
            # One name each, in turn: all of them would make the pictures with many names count for more.
            name = names[phrase_number % len(names)]
            gold = right[picture, asked.format(name=name)].rstrip(".")
            yield _demo_item(number, picture, words.format(name=name), gold)
            number += 1
    for label in ("the green house", "house that is green", "a green house"):
        box = next(boxes[0] for at, query, boxes in _examples().boxes() if (at, query) == ("scene", "green house"))
        with Image.open(ROOT / "examples" / "scene.png") as opened:
            notes = {"size": list(opened.size)}
        yield _demo_item(number, "scene", locate_prompt(label), [list(box)], notes)
        number += 1


def _names(picture: str) -> list[str]:
    names = {"bars": list(_examples().BARS.names), "scene": [*dict.fromkeys(_examples().SCENE), "yellow circle"]}
    return names.get(picture, [])


def _demo_item(number: int, picture: str, question: str, gold: Any, notes: dict[str, Any] | None = None) -> Item:
    image = (ROOT / "examples" / f"{picture}.png").read_bytes()
    id = f"demo-{number:03d}"
    return Item(id=id, question=question, images=(image,), gold=gold, part=picture, cluster=picture, notes=notes or {})


def _score_demo(item: Item, answer: str) -> Score:
    """Score by what the gold answer is: a box, yes or no, a number, or words."""
    if "size" in item.notes:
        return score_first_box(item, answer)
    if item.gold in ("Yes", "No"):
        said = score_yes_no(item, answer).read
        return Score(value=float(said == item.gold.casefold()), read=said)
    if item.part == "scene":
        return score_count(item, answer)
    return (score_number if item.part in ("bars", "bill") else score_words)(item, answer)


def _task(name: str, title: str, layout: str, read: Any, score: Any, says: str, max_new_tokens: int = 32) -> Task:
    protocols = {"vl2": protocol(score, says, max_new_tokens)}
    return Task(name=name, title=title, layout=layout, read=read, protocols=protocols, metric=mean_score, is_mean=True)


DEMO = _task("demo", "The demo's questions in other words", "reads examples/", _read_demo, _score_demo,
             "What the picture shows, alone or in a sentence.", 96)  # fmt: skip
NLVR = _task("nlvr", "NLVR: is a sentence true of a drawn scene (groups kept back)", "reads nlvr/*.parquet", _read_nlvr,
             score_yes_no, "The first word says yes or no.", 16)  # fmt: skip
RECEIPT_LINES = _task("sroie_lines", "SROIE: one line cut out of a receipt (shops kept back)", "reads sroie/*.parquet",
                      _read_receipt_lines, score_receipt_line, "Its words and numbers, without case.", 96)  # fmt: skip
RECEIPT_FIELDS = _task("sroie_fields", "SROIE: total and date of a whole receipt (shops kept back)",
                       "reads sroie/*.parquet", _read_receipt_fields, _score_field,
                       "The one number that is said; the words and numbers of the date.", 48)  # fmt: skip
PHOTOS = _task("photos", "Questions that a photograph does not answer: the model must say so", "reads photos/*.parquet",
               _read_photos, score_admission, "The answer says that it cannot be told.", 48)  # fmt: skip
