"""Read a user's own data as records, after detecting which of four kinds it is.

records   a store of records (docs/record.md)
llava     conversations in LLaVA's JSON or JSONL (`conversation_sets.py`)
table     CSV, TSV or JSONL of questions and answers, with the columns below
folder    a folder with one of these three and its images

The columns of a table:

    image       path relative to the table; `images` for several: a list in JSONL, separated by ";" in CSV
    question    text; `<image>` in it marks the position of an image, otherwise the images come first
    answer      text; {box:0} in it stands for the first labeled object
    rejected    a worse answer, for preference optimization
    label, x0, y0, x1, y1           one box in pixels of the upright image
    boxes       several boxes: [{"label": "mug", "box": [x0, y0, x1, y1], "image": 0}, ...], in CSV as JSON text
    system, id, category, language, licence     optional

With boxes, an empty answer becomes the boxes themselves, and an empty question asks for the label, if there is only
one. Boxes with one label in one image form one object.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vl2.data.json_stream import Row
from vl2.data.raw_files import image_file, jsonl_rows
from vl2.data.record import PLACEHOLDER, BoxPx, Labeled, Message, Part, Record, StoredImage
from vl2.data.store import Found, Located, Place, Problem, read_records
from vl2.data.store.entry import load_images
from vl2.data.store.locations import ENDINGS, data_file
from vl2.data.store.tar import INDEX_ENDING
from vl2.datasets.box_questions import clip_box
from vl2.datasets.conversation_sets import read_llava
from vl2.datasets.conversion import Conversion, RowProblem, numbered
from vl2.datasets.question_answers import require_text, split_at_images
from vl2.errors import UserError, name_hint
from vl2.files import local_path
from vl2.process.grounding import END_REF, REF

CORNERS = ("x0", "y0", "x1", "y1")
COLUMNS = (
    "image", "images", "question", "answer", "rejected", "label", *CORNERS, "boxes", "system",
    "id", "category", "language", "licence",
)  # fmt: skip


def table_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a table with their locations. Raise UserError if the header has an unknown column."""
    if path.suffix.lower() == ".jsonl":
        yield from jsonl_rows(path)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            _check_columns([name for name in reader.fieldnames or () if name is not None], path.name)
            for row in reader:
                where = f"{path.name} line {reader.line_num}"
                if None in row or None in row.values():
                    yield where, UserError(f"the row does not have {len(reader.fieldnames or ())} cells as the header")
                else:
                    yield where, {name: cell for name, cell in row.items() if cell.strip()}
    except UnicodeDecodeError:
        raise UserError(f"{path.name} is not text in UTF-8: save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise UserError(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def table_records(conversion: Conversion, rows: Iterable[Row]) -> Iterator[tuple[str, Record | UserError]]:
    """Yield the location of each row with its record, or with the error."""
    for where, row in numbered(rows):
        try:
            if isinstance(row, UserError):
                raise row
            yield where, _record(conversion, *row)
        except UserError as error:
            yield where, error


def _check_columns(names: Sequence[str], what: str) -> None:
    for name in names:
        if name not in COLUMNS:
            raise UserError(f"{what} has a column {name!r}: {name_hint(name, COLUMNS)}")


def _record(conversion: Conversion, number: int, row: Any) -> Record:
    if not isinstance(row, Mapping):
        raise UserError(f"a row must be an object, got {type(row).__name__}")
    _check_columns(list(row), "the row")
    images = [image_file(conversion.folder, name) for name in _image_names(row)]
    objects = _objects(row, images)
    question, answer = _texts(row, objects)
    asked = _question_parts(question, len(images))
    system = _text(row, "system")
    return Record(
        id=f"{conversion.source}-{_text(row, 'id') or number}",
        source=conversion.source,
        category=_text(row, "category") or _category(images, objects, answer),
        language=_text(row, "language") or conversion.language,
        licence=_text(row, "licence") or conversion.licence,
        messages=(
            *([Message(role="system", parts=(Part(text=system),))] if system else []),
            Message(role="user", parts=asked),
            Message(role="assistant", parts=(Part(text=answer),)),
        ),
        images=tuple(images),
        objects=tuple(objects),
        rejected=_text(row, "rejected"),
    )


def _texts(row: Mapping[str, Any], objects: Sequence[Labeled]) -> tuple[str, str]:
    """Return the question and the answer; empty ones are made from the boxes."""
    question, answer = _text(row, "question"), _text(row, "answer")
    if not question:
        labels = {labeled.label for labeled in objects}
        if len(labels) != 1:
            raise UserError("the question is empty; only a row whose boxes all have one label can omit it")
        question = f"{REF}{objects[0].label}{END_REF}."
    if not answer and objects:
        answer = "\n".join(f"{{box:{k}}}" for k in range(len(objects)))
    if objects and not PLACEHOLDER.search(answer):
        raise UserError("the answer does not use the boxes: write {box:0} in it, or leave the answer out")
    return question, require_text(answer, "answer")


def _question_parts(question: str, num_images: int) -> tuple[Part, ...]:
    if not num_images:
        return (Part(text=question),)
    parts, used = split_at_images(question, 0)
    if used not in (0, num_images):
        raise UserError(f"the question has {used} <image> for {num_images} images")
    return (*(Part(image=i) for i in range(num_images - used)), *parts)


def _category(images: Sequence[StoredImage], objects: Sequence[Labeled], answer: str) -> str:
    if not images:
        return "text"
    if not objects:
        return "vqa"
    return "grounded_conversation" if PLACEHOLDER.sub("", answer).strip() else "grounding"


def _image_names(row: Mapping[str, Any]) -> list[str]:
    if "image" in row and "images" in row:
        raise UserError("give either image or images")
    given = row.get("images", row.get("image", []))
    names = given if isinstance(given, list) else [name.strip() for name in str(given).split(";")]
    if not all(isinstance(name, str) and name for name in names):
        raise UserError(f"images must be names of files, got {given!r:.80}")
    return names


def _objects(row: Mapping[str, Any], images: Sequence[StoredImage]) -> list[Labeled]:
    found: dict[tuple[int, str], list[BoxPx]] = {}
    for labeled in _boxes(row):
        image, label, corners = labeled.get("image", 0), labeled.get("label"), labeled.get("box")
        if not isinstance(label, str) or not label.strip():
            raise UserError(f"a box must have a label, got {labeled!r:.80}")
        if isinstance(image, bool) or not isinstance(image, int) or not 0 <= image < len(images):
            raise UserError(f"the box of {label!r} is in image {image!r}, there are {len(images)}")
        if not isinstance(corners, list) or len(corners) != 4:
            raise UserError(f"the box of {label!r} must be [x0, y0, x1, y1], got {corners!r:.80}")
        size = images[image].width, images[image].height
        found.setdefault((image, label.strip()), []).append(clip_box([_number(v, label) for v in corners], size))
    return [Labeled(image=image, label=label, boxes_px=tuple(boxes)) for (image, label), boxes in found.items()]


def _boxes(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    single = [name for name in ("label", *CORNERS) if name in row]
    if "boxes" not in row:
        if not single:
            return []
        if len(single) != 5:
            raise UserError(f"a box needs label, {', '.join(CORNERS)}; the row has {', '.join(single)}")
        return [{"label": row["label"], "box": [row[name] for name in CORNERS]}]
    if single:
        raise UserError(f"give either boxes or {', '.join(single)}")
    boxes = row["boxes"]
    if isinstance(boxes, str):
        try:
            boxes = json.loads(boxes)
        except ValueError as error:
            raise UserError(f"boxes are not valid JSON: {error}") from None
    if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes):
        raise UserError(f"boxes must be a list of objects with label and box, got {boxes!r:.80}")
    for box in boxes:
        unknown = box.keys() - {"label", "box", "image"}
        if unknown:
            raise UserError(f"a box has label, box and image, got {sorted(unknown)[0]!r}")
    return boxes


def _number(value: Any, label: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"the box of {label!r} must be numbers, got {value!r}") from None


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name, "")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{name} must be a text, got {type(value).__name__}")
    return str(value).strip()


Kind = Literal["records", "llava", "table"]

TABLES = (".csv", ".tsv")
LISTS = (".jsonl", ".json")
_SHOWN = 5


def read_own(location: str) -> Iterator[Found]:
    """Yield every record with the bytes of its images, or a problem for a row that is not a valid record.

    Raise UserError before the first record if there is no readable data at the location.
    """
    kind, path = find_own(location)
    if kind == "records":
        return read_records(location if path is None else str(path))
    assert path is not None
    conversion = Conversion(folder=path.parent, split=path.stem, source=path.stem, category="vqa", licence="unknown")
    if kind == "table":
        return _with_images(conversion, table_records(conversion, table_rows(path)))
    return _with_images(conversion, ((_where(item), _record_or_error(item)) for item in read_llava(conversion, path)))


def find_own(location: str) -> tuple[Kind, Path | None]:
    """Return the kind of the data at a location, and its file; None if a store is not a single local file.

    Raise UserError if there is no readable data, or if a folder has several tables.
    """
    path = local_path(location)
    if path.is_file():
        return kind_of(path), path
    if not path.is_dir():
        if "://" in location or any(sign in location for sign in "*?["):
            return "records", None
        raise UserError(f"no file or folder {location}")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in (*TABLES, *LISTS))
    own = [file for file in found if not file.name.endswith(INDEX_ENDING) and kind_of(file) != "records"]
    if not own:
        if any(file.suffix.lower() in ENDINGS for file in path.rglob("*")):
            return "records", path
        raise UserError(
            f"{location} holds no records and no table (.csv, .tsv, .jsonl, .json) of questions and answers"
        )
    if len(own) > 1:
        names = ", ".join(file.name for file in own[:_SHOWN])
        raise UserError(f"{location} holds several tables: name the one to use ({names})")
    return kind_of(own[0]), own[0]


def kind_of(path: Path) -> Kind:
    """Return the kind of a file by its ending and, for JSONL, its first line.

    Raise UserError if the ending is unknown.
    """
    ending = path.suffix.lower()
    if ending in TABLES:
        return "table"
    if ending == ".json":
        return "llava"
    if ending == ".jsonl":
        return _kind_of_lines(path)
    if ending in ENDINGS:
        return "records"
    raise UserError(f"data is in {', '.join((*TABLES, *LISTS, '.parquet', '.tar'))}, got {path.name}")


def _kind_of_lines(path: Path) -> Kind:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as lines:
            first = json.loads(next((line for line in lines if line.strip()), "null"))
    except (OSError, ValueError, RecursionError):
        return "records"  # the reader of records reports what is wrong with each line
    if isinstance(first, dict) and "messages" not in first:
        return "llava" if "conversations" in first else "table"
    return "records"


def _with_images(conversion: Conversion, made: Iterable[tuple[str, Record | UserError]]) -> Iterator[Found]:
    folder = data_file(f"{conversion.folder}/records")
    for where, item in made:
        place = Place(file=where)
        if isinstance(item, UserError):
            yield Problem(place=place, id=None, kind="record", why=str(item))
            continue
        try:
            yield Located(record=load_images(item, folder.read_image), place=place)
        except UserError as error:
            yield Problem(place=place, id=item.id, kind="image", why=str(error))


def _where(item: Record | RowProblem) -> str:
    return item.id if isinstance(item, Record) else item.where


def _record_or_error(item: Record | RowProblem) -> Record | UserError:
    return item if isinstance(item, Record) else UserError(item.why)
