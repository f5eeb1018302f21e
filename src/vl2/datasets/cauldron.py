"""The Cauldron (and Docmatix, in the same layout): images with conversations about them.

    {subset}/train-00000-of-00001-*.parquet   images: [{bytes, path}], texts: [{user, assistant, source}]

A folder is one subset, and its name says what it teaches. Rows have no ids: they are numbered over the sorted files.
"""

from __future__ import annotations

from collections.abc import Iterator

from vl2.data.raw_files import Json, image_bytes, parquet_files, parquet_rows
from vl2.data.record import Record
from vl2.datasets.conversion import Conversion, Converted, each, numbered
from vl2.datasets.question_answers import converse

# Subsets that teach something else than answering general questions.
CATEGORIES = {
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


def read(conversion: Conversion) -> Converted:
    rows = parquet_rows(parquet_files(conversion.folder, conversion.split), ("images", "texts"))

    category = next((c for c, subsets in CATEGORIES.items() if conversion.folder.name in subsets), conversion.category)

    def make(row: tuple[int, Json]) -> Iterator[Record]:
        number, content = row
        id = f"{conversion.folder.name}-{number}"
        images = [image_bytes(image, f"{i} of row {number}") for i, image in enumerate(content["images"] or ())]
        turns = [(text["user"], text["assistant"]) for text in content["texts"]]
        yield converse(conversion, id, turns, images, category=category if images else "text")

    return each(numbered(rows), make)
