"""OCRBench v2: 10,000 questions of 30 types about text in images, in English and Chinese.

    OCRBench_v2.json, EN_part/, CN_part/ (the release)    dataset_name, type, id, image_path, question, answers, and for
        some types eval, bbox, content
    test-*.parquet (the hub's)    the same with image; boxes of text spotting in bbox_list

The figure of a language is the mean of its abilities, and that of an ability the mean of its questions.

Source: Yuliang-Liu/MultimodalOCR, `OCRBench_v2/eval_scripts/eval.py` and `get_score.py` (commit 794c36d6).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from vl2.errors import UserError
from vl2.eval.protocols import ask
from vl2.eval.public_data import Dataset, Row, images_of, is_blank, read_rows, released_rows, stems_of
from vl2.eval.score import ocrbench_v2 as rules
from vl2.eval.score.page_similarity import check_wordnet, page_similarity
from vl2.eval.task import DataSource, Item, LeftOut, Protocol, Result, Score, Task
from vl2.optional_imports import import_extra

FILE = "OCRBench_v2.json"
NO_TRANSLATION = LeftOut(why="without a gold translation")
ABILITIES = {  # ability: its types of questions
    "English": {
        "text recognition": ("text recognition", "fine-grained text recognition", "full-page OCR"),
        "text detection": ("text grounding", "VQA with position"),
        "text spotting": ("text spotting",),
        "relationship extraction": ("key information extraction", "key information mapping"),
        "element parsing": ("document parsing", "chart parsing", "table parsing", "formula recognition"),
        "mathematical calculation": ("math QA", "text counting"),
        "visual text understanding": ("document classification", "cognition VQA", "diagram QA"),
        "knowledge reasoning": ("reasoning VQA", "science QA", "APP agent", "ASCII art classification"),
    },
    "Chinese": {
        "text recognition": ("full-page OCR",),
        "relationship extraction": ("key information extraction", "handwritten answer extraction"),
        "element parsing": ("document parsing", "table parsing", "formula recognition"),
        "visual text understanding": ("cognition VQA",),
        "knowledge reasoning": ("reasoning VQA", "text translation"),
    },
}
LANGUAGES = {"English": "en", "Chinese": "cn"}  # how the types end
TYPES = {
    f"{name} {LANGUAGES[language]}"
    for language, abilities in ABILITIES.items() for names in abilities.values() for name in names
}  # fmt: skip


def read(task: Task, source: DataSource) -> Iterator[Item | LeftOut]:
    for library in ("lxml", "rapidfuzz", "jieba"):
        import_extra(library, "documents", task.name)
    check_wordnet()
    folder = source.folder(task)
    if (folder / FILE).is_file():
        rows: Iterator[Row] = released_rows(folder, FILE)
    else:
        rows = read_rows(folder, stems_of(source.part(task)), ("question", "answers", "type"))
    for number, row in enumerate(rows):
        yield _item(row, str(row.get("id", number)), folder)


def _item(row: Row, id: str, folder: Any) -> Item | LeftOut:
    kind = str(row.get("type"))
    if kind not in TYPES:
        raise UserError(f"question {id}: the type must be one of {', '.join(sorted(TYPES))}, got {kind!r}")
    answers = row["answers"] if isinstance(row["answers"], list) else [row["answers"]]
    if kind == "text translation cn" and not answers[0]:
        return NO_TRANSLATION
    rule = row.get("eval")
    return Item(
        id=id,
        question=str(row["question"]),
        images=images_of(row.get("image", row.get("image_path")), folder, id),
        gold=answers,
        part=kind,
        notes={
            "rule": "" if is_blank(rule) or rule == "None" else str(rule),
            "bbox": row.get("bbox_list") or row.get("bbox"),
            "content": row.get("content"),
        },
    )


def score(item: Item, answer: str) -> Score:
    return Score(value=_value(item, answer), read=answer.strip())


def _value(item: Item, answer: str) -> float:
    kind, rule, golds = item.part, item.notes.get("rule"), item.gold
    name, _, language = kind.rpartition(" ")
    if rule == "multiple choice":
        return rules.score_letters(answer, golds)
    if rule == "case sensitive":
        return rules.score_with_case(answer, golds)
    match name:
        case "text counting":
            return rules.score_count(answer, golds, str(rule))
        case "handwritten answer extraction":
            return rules.score_handwriting(answer, golds, item.question)
        case "formula recognition":
            return (rules.score_chinese_formula if language == "cn" else rules.score_formula)(answer, golds)
        case "table parsing":
            is_html = language == "cn" or "html" in item.question.lower()
            return (rules.score_html_table if is_html else rules.score_markdown_table)(answer, golds)
        case "chart parsing":
            return rules.score_chart(answer, golds)
        case "document parsing":
            return rules.score_document(answer, golds)
        case "key information extraction" | "key information mapping":
            return rules.score_keys(answer, golds)
        case "VQA with position":
            return rules.score_with_position(answer, golds, item.notes["bbox"])
        case "text grounding":
            return rules.score_box(answer, golds)
        case "text spotting":
            return rules.score_spotting(answer, item.notes["bbox"], item.notes["content"])
        case "text translation" | "fine-grained text recognition" | "full-page OCR":
            return page_similarity(answer, str(golds[0]))
    is_chinese = kind in ("cognition VQA cn", "reasoning VQA cn")
    return (rules.score_chinese if is_chinese else rules.score_english)(answer, golds)


def by_ability(results: Sequence[Result]) -> dict[str, float]:
    """Return the mean over abilities of each language, then every ability's and every type's mean, in percent."""
    by_type: dict[str, list[float]] = {}
    for result in results:
        by_type.setdefault(result.part, []).append(100 * result.score)
    means: dict[str, float] = {}
    figures: dict[str, float] = {}
    for language, abilities in ABILITIES.items():
        found = {}
        for ability, names in abilities.items():
            scores = [score for name in names for score in by_type.get(f"{name} {LANGUAGES[language]}", ())]
            if scores:
                found[f"{language}: {ability}"] = fmean(scores)
        if found:
            means[language] = fmean(found.values())
        figures |= found
    return means | figures | {kind: fmean(scores) for kind, scores in sorted(by_type.items())}


TASK = Task(
    name="ocrbench_v2",
    title="OCRBench v2: reading, locating, parsing and reasoning about text",
    layout=f"reads {FILE}, EN_part/ and CN_part/, or test-*.parquet (image, question, answers, type, ...)",
    folders=("ocrbench_v2", "OCRBench_v2"),
    read=read,
    split="test",
    protocols={
        "official": Protocol(ask=ask, score=score, max_new_tokens=2048,
                             says="The rule of each type; the figure is the mean over the abilities of a language."),
    },
    hub=Dataset("ling99/OCRBench_v2", ("data/{split}-*",)),
    metric=by_ability,
)  # fmt: skip
