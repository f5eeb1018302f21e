"""MMBench in English, in Chinese and version 1.1: multiple choice, with rotations of each question's options.

    MMBench_DEV_EN.tsv, MMBench_DEV_CN.tsv, MMBench_DEV_EN_V11.tsv    index, image, question, hint, A to D, answer
    en/dev-*.parquet, cn/dev-*.parquet (lmms-eval's)    the same columns

A question is correct only if all its rotations are. The index of a rotation is that of the question plus a multiple of
1,000,000. The published figures are of the test splits, whose answers are withheld on the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vl2.eval.protocols import PAPER, VLMEVALKIT, circular_accuracy, lmms_mmbench_protocol, merge_rotations
from vl2.eval.public_data import Dataset, images_of, is_blank, options_of, read_rows, stems_of
from vl2.eval.task import DataSource, Item, Protocol, Task

ROTATION = 1_000_000
CHINESE = "请直接使用所提供的选项字母作为答案回答。"


def read_named(tsv: str, part: str) -> Callable[[Task, DataSource], Iterator[Item]]:
    def read(task: Task, source: DataSource) -> Iterator[Item]:
        folder, split = source.folder(task), source.part(task)
        # The hub's copy has one folder per language, which must come first.
        stems = [tsv.format(split=split.upper()), *stems_of(split, folders=(f"{part}/", "", "data/"))]
        for row in read_rows(folder, stems, ("index", "question")):
            index = int(row["index"])
            answer = row.get("answer")  # missing in the files of the test splits
            yield Item(
                id=str(index),
                question=row["question"],
                images=images_of(row["image"], folder, str(index)),
                gold="" if is_blank(answer) else str(answer).strip().upper(),
                options=options_of(row),
                part=str(row.get("category", "")),
                cluster=str(index % ROTATION),
                notes={} if is_blank(row.get("hint")) else {"hint": row["hint"]},
            )

    return read


def _task(name: str, title: str, tsv: str, part: str, *, lmms_eval: Protocol, hub: Dataset | None = None) -> Task:
    return Task(
        name=name,
        title=title,
        layout=f"reads {tsv.format(split='DEV')}.tsv or {part}/dev-*.parquet (index, image, question, A to D, answer)",
        folders=("mmbench", "MMBench"),
        read=read_named(tsv, part),
        split="dev",
        protocols={
            "paper": PAPER,
            "vlmevalkit": VLMEVALKIT,
            "lmms-eval": lmms_eval,
        },
        published_by="vlmevalkit",
        published=name,
        published_split="test",
        hub=hub,
        metric=circular_accuracy,
        keeps_clusters=True,
        merge=merge_rotations,
    )


ENGLISH_PROTOCOL, CHINESE_PROTOCOL = (
    lmms_mmbench_protocol(max_new_tokens=1024),
    lmms_mmbench_protocol(CHINESE, max_new_tokens=256),
)
HUB = "lmms-lab/MMBench"
ENGLISH = _task(
    "mmbench_en", "MMBench in English", "MMBench_{split}_EN", "en", lmms_eval=ENGLISH_PROTOCOL,
    hub=Dataset(HUB, ("en/{split}-*",)),
)  # fmt: skip
CHINESE_TASK = _task(
    "mmbench_cn", "MMBench in Chinese", "MMBench_{split}_CN", "cn", lmms_eval=CHINESE_PROTOCOL,
    hub=Dataset(HUB, ("cn/{split}-*",)),
)  # fmt: skip
V11 = _task("mmbench_v11", "MMBench 1.1 in English", "MMBench_{split}_EN_V11", "en_v11", lmms_eval=ENGLISH_PROTOCOL)
