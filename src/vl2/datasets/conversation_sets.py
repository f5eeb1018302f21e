"""Converters of conversations about images in the common layouts: LLaVA's, LLaVA-OneVision's and The Cauldron's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from vl2.data.json_stream import Row, list_rows
from vl2.data.raw_files import Json, find_file, image_bytes, image_file, jsonl_rows, parquet_files, parquet_rows
from vl2.data.record import Message, Part, Record
from vl2.datasets.conversion import Conversion, Converted, convert_rows, numbered
from vl2.datasets.question_answers import converse, record, require_text, split_at_images
from vl2.errors import UserError

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip


def read_llava(conversion: Conversion, path: Path | None = None) -> Converted:
    """Read conversations in LLaVA's layout, in which `<image>` marks the position of an image.

        llava_v1_5_mix665k.json   [{id, image: "coco/train2017/000000033471.jpg" or a list, conversations: [...]}]

    `from` is human, gpt or system. Rows without an image get category "text". ShareGPT4V, ALLaVA, MathV360K and
    LLaVA-NeXT-Interleave use this layout.

    The file is `path`, or the file of the split: the split is its name without the ending, and may be anything in a
    folder with only one such file.
    """
    path = path or find_file(
        conversion.folder, f"{conversion.split}.json", f"{conversion.split}.jsonl", "*.json", "*.jsonl"
    )
    rows: Iterable[Row] = jsonl_rows(path) if path.suffix.lower() == ".jsonl" else list_rows(path)
    return convert_rows(numbered(rows), lambda row: _llava_records(conversion, *row))


def _llava_records(conversion: Conversion, number: int, row: Json) -> Iterator[Record]:
    names = row.get("image") or []
    names = [names] if isinstance(names, str) else names
    images = [image_file(conversion.folder, name, f"images/{name}") for name in names]
    messages = to_messages(row["conversations"], len(images))
    # Ids are not unique in the public files: a conversation about an image and its description share one.
    id = f"{number}-{row['id']}" if row.get("id") else number
    yield record(conversion, id, messages, images, category=None if images else "text")


def to_messages(turns: Sequence[Json], num_images: int) -> list[Message]:
    """Convert turns to messages. If no turn has an `<image>`, all images go before the first question."""
    tags = sum(turn["value"].count("<image>") for turn in turns if ROLES.get(turn["from"]) == "user")
    if tags not in (0, num_images):
        raise UserError(f"the conversation has {tags} <image> for {num_images} images")
    used = 0
    messages = []
    for turn in turns:
        role = ROLES.get(turn["from"])
        if role is None:
            raise UserError(f"from must be one of {', '.join(ROLES)}, got {turn['from']!r}")
        if role != "user":
            messages.append(Message(role=role, parts=(Part(text=require_text(turn["value"], f"{role} message")),)))
            continue
        untagged = num_images if tags == 0 and used == 0 else 0
        parts, used = split_at_images(turn["value"], used) if num_images else ([Part(text=turn["value"])], used)
        messages.append(Message(role="user", parts=(*(Part(image=i) for i in range(untagged)), *parts)))
        used += untagged
    return messages


def read_llava_onevision(conversion: Conversion) -> Converted:
    """Read a subset of LLaVA-OneVision's data, among them MAVIS: one image and a conversation in each row.

    {subset}/train-00000-of-00004.parquet   id, image: {bytes, path} or null, conversations: [{from, value}]
    """
    rows = parquet_rows(parquet_files(conversion.folder, conversion.split), ("id", "image", "conversations"))

    def make(row: tuple[int, Json]) -> Iterator[Record]:
        number, content = row
        images = [image_bytes(content["image"], str(content["id"]))] if content["image"] else []
        messages = to_messages(content["conversations"], len(images))
        yield record(conversion, f"{number}-{content['id']}", messages, images, category=None if images else "text")

    return convert_rows(numbered(rows), make)


# The categories of subsets other than general questions.
CAULDRON_CATEGORIES = {
    "academic": ("ai2d", "scienceqa", "tqa", "mimic_cgd"),
    "caption": ("localized_narratives", "textcaps"),
    "document": ("docvqa", "infographic_vqa", "visualmrc"),
    "gui": ("screen2words",),
    "ocr": ("iam", "ocrvqa", "rendered_text", "st_vqa", "textvqa", "diagram_image_to_text"),
    "plot_to_code": ("datikz",),
    "reasoning": ("clevr", "clevr_math", "geomverse", "iconqa", "intergps", "nlvr2", "raven"),
    "table_chart": (
        "chart2text", "chartqa", "dvqa", "figureqa", "finqa", "hitab", "mapqa", "multihiertt", "plotqa", "robut_sqa",
        "robut_wikisql", "robut_wtq", "tabmwp", "tat_qa", "vistext",
    ),
    "web_to_code": ("websight",),
}  # fmt: skip


def read_cauldron(conversion: Conversion) -> Converted:
    """Read The Cauldron (and Docmatix, in the same layout): images with conversations about them.

        {subset}/train-00000-of-00001-*.parquet   images: [{bytes, path}], texts: [{user, assistant, source}]

    A folder holds one subset, and its name determines the category. Rows have no ids, so they are numbered across the
    sorted files.
    """
    rows = parquet_rows(parquet_files(conversion.folder, conversion.split), ("images", "texts"))

    category = next(
        (c for c, subsets in CAULDRON_CATEGORIES.items() if conversion.folder.name in subsets), conversion.category
    )

    def make(row: tuple[int, Json]) -> Iterator[Record]:
        number, content = row
        id = f"{conversion.folder.name}-{number}"
        images = [image_bytes(image, f"{i} of row {number}") for i, image in enumerate(content["images"] or ())]
        turns = [(text["user"], text["assistant"]) for text in content["texts"]]
        yield converse(conversion, id, turns, images, category=category if images else "text")

    return convert_rows(numbered(rows), make)
