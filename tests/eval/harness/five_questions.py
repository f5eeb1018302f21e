"""A benchmark of five questions in ChartQA's three public layouts: the same pictures, questions and gold answers."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

QUESTIONS = ("How high is A?", "How high is B?", "Which bar is highest?", "What is the sum?", "Is A above B?")


def picture(number: int) -> bytes:
    image = Image.new("RGB", (120, 90), "white")
    draw = ImageDraw.Draw(image)
    for bar in range(3):
        height = 10 + (number * 17 + bar * 23) % 60
        draw.rectangle((15 + 35 * bar, 85 - height, 35 + 35 * bar, 85), fill=("navy", "teal", "orange")[bar])
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def write_parquet(folder: Path, golds: Sequence[str]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": picture(n), "path": None} for n in range(5)]
    columns = {"type": ["human_test"] * 5, "question": list(QUESTIONS), "answer": list(golds), "image": images}
    # What the hub writes into its files: without it, `datasets` hands out a struct in place of a picture.
    texts = {name: {"dtype": "string", "_type": "Value"} for name in ("type", "question", "answer")}
    described = {"info": {"features": {**texts, "image": {"_type": "Image"}}}}
    picture_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [*((name, pa.string()) for name in texts), ("image", picture_type)]
    table = pa.table(columns, pa.schema(fields, {"huggingface": json.dumps(described)}))
    path = folder / "test-00000-of-00001.parquet"
    pq.write_table(table, path)
    return path


def write_tsv(path: Path, golds: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, delimiter="\t")
        writer.writerow(("index", "image", "question", "answer", "split"))
        for n, (question, gold) in enumerate(zip(QUESTIONS, golds, strict=True)):
            writer.writerow((n, base64.b64encode(picture(n)).decode(), question, gold, "test_human"))
