"""Datasets in the layout of the Hugging Face hub (Parquet shards by split), with any columns, as records.

    data/train-00000-of-00004.parquet, train.parquet or default/train/0000.parquet

Rows are read as streams, some row groups at a time and only the columns that are needed, from a folder or from the hub
itself (`hf://datasets/OWNER/NAME`, by range requests: nothing is downloaded whole). A `HubPart` names whole row groups,
so reading may stop after any part and continue with the next one exactly.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl2.data.json_stream import Row
from vl2.data.raw_files import Json, image_bytes
from vl2.data.record import CATEGORIES, Record, StoredImage
from vl2.data.store.locations import DataFile, data_file, find_files, needs_extra
from vl2.datasets.conversation_sets import to_messages
from vl2.datasets.conversion import Conversion, Converted, convert_rows
from vl2.datasets.question_answers import converse, record, short_question
from vl2.datasets.text_sets import document
from vl2.errors import UserError

COLUMNS = ("images", "question", "answer", "conversations", "text")
BATCH_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class HubSettings:
    """How the rows of a set become records: the settings of a recipe's source.

    `columns` maps what a record needs to the names of the set's columns: `images` (one image or a list), and either
    `question` and `answer`, or `conversations` (entries with from and value, role and content, or user and assistant),
    or `text` (documents).
    """

    columns: Mapping[str, str]
    category: str
    licence: str = "check"
    prompt: str = ""  # the question, for sets that have no column for it, such as captions
    short_answers: bool = False  # adds the instruction to answer with a word or phrase
    subset: str = ""  # the folder of the set's files, if it has several
    revision: str = ""  # on the hub: a branch, tag or commit; give a commit for a run that may be resumed

    def __post_init__(self) -> None:
        if not isinstance(self.columns, Mapping) or not all(isinstance(v, str) for v in self.columns.values()):
            raise UserError('columns must be a table such as {images = "image", question = "query", answer = "label"}')
        unknown = [name for name in self.columns if name not in COLUMNS]
        if unknown:
            raise UserError(f"columns has no entry {unknown[0]}: there are {', '.join(COLUMNS)}")
        kinds = [kind for kind in ("answer", "conversations", "text") if kind in self.columns]
        if len(kinds) != 1:
            raise UserError(f"columns must name one of answer, conversations and text, it names {len(kinds)}")
        if (kinds == ["answer"]) != (("question" in self.columns) != bool(self.prompt)):
            raise UserError("an answer needs a question: a column or a prompt, one of them; nothing else takes one")
        if kinds == ["text"] and "images" in self.columns:
            raise UserError("a text is a document without images: leave out images")
        if self.short_answers and kinds != ["answer"]:
            raise UserError("short_answers is for question and answer")
        if self.category not in CATEGORIES:
            raise UserError(f"category must be one of {', '.join(CATEGORIES)}, got {self.category!r}")


@dataclass(frozen=True, kw_only=True)
class HubPart:
    """Some row groups of one file."""

    file: str
    groups: tuple[int, ...]
    first_row: int  # number of the first row, counted over all files of the split
    num_rows: int  # fewer than the groups have, if a limit cuts the last part


def hub_location(name: str, folder: str, revision: str) -> str:
    """Return where the files of a set are: in a folder, or else on the hub."""
    if folder:
        return folder
    if name.count("/") != 1:
        raise UserError(
            f"a set on the hub is called OWNER/NAME, got {name!r}; for files of your own give from, a folder"
        )
    return f"hf://datasets/{name}" + (f"@{revision}" if revision else "")


def hub_files(location: str, split: str, subset: str = "") -> list[DataFile]:
    """Return the Parquet shards of a split, sorted. Raise UserError if there are none, or of several subsets."""
    root = f"{location.rstrip('/')}/{subset}" if subset else location
    base = data_file(root).path.rstrip("/") + "/"
    found = [file for file in find_files(root) if file.format == "parquet"]
    chosen = [file for file in found if _split_of(file) == split]
    if not chosen:
        splits = sorted({_split_of(file) for file in found})
        raise UserError(f"{root} has no Parquet files of the split {split!r}: there are {', '.join(splits) or 'none'}")
    folders = sorted({_subset_of(file, base, split) for file in chosen})
    if len(folders) > 1:
        raise UserError(f"{root} has several subsets with the split {split}, give one: {', '.join(folders[:20])}")
    return chosen


def _split_of(file: DataFile) -> str:
    """Return the split that a file is of: `train` for train-00000-of-00004.parquet and train/0000.parquet."""
    stem = posixpath.basename(file.path).rpartition(".")[0]
    return posixpath.basename(posixpath.dirname(file.path)) if stem.isdigit() else stem.partition("-")[0]


def _subset_of(file: DataFile, base: str, split: str) -> str:
    folder = posixpath.dirname(file.path.removeprefix(base))
    return folder.removesuffix(split).rstrip("/") if posixpath.basename(folder) == split else folder


def hub_parts(files: Sequence[DataFile], columns: Iterable[str], part_rows: int, limit: int | None) -> list[HubPart]:
    """Divide the rows of the files into parts: as many whole row groups as have at most `part_rows` rows, at least one.

    Only the end of each file is read. `limit` is the most rows in all. Raise UserError for a file without the columns.
    """
    parts: list[HubPart] = []
    total = 0
    for file in files:
        sizes = _group_sizes(file, columns)
        group = 0
        while group < len(sizes) and (limit is None or total < limit):
            end, rows = group + 1, sizes[group]
            while end < len(sizes) and rows + sizes[end] <= part_rows:
                rows, end = rows + sizes[end], end + 1
            kept = rows if limit is None else min(rows, limit - total)
            parts.append(HubPart(file=file.name, groups=tuple(range(group, end)), first_row=total, num_rows=kept))
            total, group = total + kept, end
    return parts


def _group_sizes(file: DataFile, columns: Iterable[str]) -> list[int]:
    with needs_extra("Parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        with file.open() as raw:
            table = pq.ParquetFile(raw)
            names, metadata = table.schema_arrow.names, table.metadata
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{file.name} is not Parquet: {str(error).splitlines()[0]}") from None
    for name in columns:
        if name not in names:
            raise UserError(f"{file.name} has no column {name}, it has {', '.join(names)}")
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def read_hub_part(name: str, part: HubPart, settings: HubSettings, language: str) -> Converted:
    """Yield the records of a part, and a RowProblem for each row that fails. Ids are numbers of rows in the split."""
    conversion = Conversion(
        folder=Path(),
        split="",
        source=name,
        category=settings.category,
        licence=settings.licence,
        language=language,
    )
    return convert_rows(_rows(part, settings), lambda row: [_hub_record(conversion, settings, *row)])


def _rows(part: HubPart, settings: HubSettings) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number, end = part.first_row, part.first_row + part.num_rows
    columns = list(dict.fromkeys(settings.columns.values()))
    try:
        with data_file(part.file).open() as raw:
            batches = pq.ParquetFile(raw).iter_batches(BATCH_ROWS, row_groups=list(part.groups), columns=columns)
            for batch in batches:
                for row in batch.to_pylist():
                    if number == end:
                        return
                    yield f"{part.file} row {number}", (number, row)
                    number += 1
    except (UserError, OSError, ValueError, pa.ArrowException) as error:
        for lost in range(number, end):
            yield f"{part.file} row {lost}", UserError(f"the file cannot be read: {str(error).splitlines()[0]}")


def _hub_record(conversion: Conversion, settings: HubSettings, number: int, row: Json) -> Record:
    value = {name: row[column] for name, column in settings.columns.items()}
    if "text" in value:
        return document(conversion, number, _text(value["text"], "text"))
    images = _images(value.get("images"), number)
    category = conversion.category if images else "text"
    if "conversations" in value:
        turns = [each for turn in value["conversations"] for each in _turns(turn)]
        return record(conversion, number, to_messages(turns, len(images)), images, category=category)
    question = _text(value["question"], "question") if "question" in value else settings.prompt
    question = short_question(question) if settings.short_answers else question
    return converse(conversion, number, [(question, _text(value["answer"], "answer"))], images, category=category)


def _images(value: Any, number: int) -> list[StoredImage]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [image_bytes(each, f"{i} of row {number}") for i, each in enumerate(values)]


def _text(value: Any, what: str) -> str:
    """Return a text, a number as text, or the first entry of a list of them."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"the {what} must be a text or a number, got {type(value).__name__}")
    return str(value)


def _turns(turn: Any) -> list[Json]:
    """Return the turns of an entry in LLaVA's form.

    An entry may have from and value, or role and content (a text or a list of parts), or user and assistant.
    """
    if "from" in turn:
        return [{"from": turn["from"], "value": turn["value"]}]
    if "user" in turn:
        return [{"from": role, "value": turn[role]} for role in ("user", "assistant")]
    content = turn["content"]
    if not isinstance(content, str):
        content = "".join("<image>" if part["type"] == "image" else part["text"] for part in content)
    return [{"from": turn["role"], "value": content}]
