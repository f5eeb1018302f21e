"""Reading whole drawn pages as Markdown: articles in one or two columns, reports with tables, forms and receipts.

The pages are written as HTML, so that their text, tables, reading order and boxes are known exactly. Kinds take turns.
The prompts are those of the protocols: the model's own for a page, or DeepSeek-OCR's, which also gives boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from statistics import fmean

from vl2.errors import UserError
from vl2.eval.drawn import draw_items, font_folders, passages_file
from vl2.eval.page_reading import MAX_NEW_TOKENS
from vl2.eval.score.page_markdown import cut_page, plain_block, score_boxes, score_page
from vl2.eval.task import DataSource, Item, Protocol, Result, Score, Task, mean_measure, mean_score
from vl2.infer.prompts import read_prompt
from vl2.optional_imports import import_extra
from vl2.process.conversation import user_turn
from vl2.process.image import open_image
from vl2.process.page_blocks import parse_blocks, to_markdown
from vl2.synth import fonts
from vl2.synth.html_pages import draw_html, png_bytes
from vl2.synth.page_writer import KINDS, RUNNING, write_page

LIBRARIES = ("weasyprint", "pypdfium2", "bs4", "lxml", "rapidfuzz", "scipy")
MEASURES = ("text", "order", "tables", "boxes")


def read_in(language: str) -> Callable[[Task, DataSource], Iterator[Item]]:
    """Return a reader whose items are drawn pages in a language."""

    def read(task: Task, data_source: DataSource) -> Iterator[Item]:
        folders, texts = font_folders(data_source), passages_file(data_source, language)
        if language not in fonts.languages(folders):
            raise UserError(f"{task.name} needs a font for Chinese: install one, or give a folder with --fonts")
        for library in LIBRARIES[1:]:
            import_extra(library, "documents", task.name)

        def draw(rng: Random, id: str) -> Item:
            page = write_page(rng, language, KINDS[int(id.rsplit("-", 1)[1]) % len(KINDS)], texts)
            face = _choose_face(rng, page.text, folders)
            drawn = draw_html(page.html, face, page.text, files=page.files)
            blocks = [
                {"type": block.type, "text": block.text, "box": list(drawn.boxes[block.id])}
                for block in page.blocks
                if block.id in drawn.boxes
            ]
            return Item(id=id, question=read_prompt(), images=(png_bytes(drawn.image),), gold=blocks, part=page.kind)

        return draw_items(task, draw)

    return read


def _choose_face(rng: Random, text: str, folders: tuple[str, ...] | None) -> fonts.Face:
    """Return a random font file that can draw a text. Raise UserError if there is none."""
    faces = [face for face in fonts.faces_for(text, folders) if face.path]
    if not faces:
        raise UserError("no font file here can draw the page: give a folder of fonts with --fonts")
    return rng.choice(faces)


def gold_markdown(blocks: Sequence[Mapping[str, object]]) -> str:
    """Return the Markdown of a page, without its running headers and footers."""
    return "\n\n".join(str(block["text"]) for block in blocks if block["text"] and block["type"] not in RUNNING)


def score(item: Item, answer: str) -> Score:
    """Score an answer by the mean of text, order and tables, as far as the page has them."""
    found = parse_blocks(answer, [open_image(item.images[0]).size]) if "<|det|>" in answer else []
    running = [plain_block(block["text"]) for block in item.gold if block["type"] in RUNNING]
    gold, said = (cut_page(text) for text in (gold_markdown(item.gold), to_markdown(found) if found else answer))
    measures = score_page(gold, said, running)
    value = fmean(measures.values())
    boxes = [box for block in found for box in block.boxes_px]
    if boxes:
        measures["boxes"] = score_boxes([b["box"] for b in item.gold if b["type"] not in RUNNING], boxes)
    return Score(value=value, read=", ".join(f"{name} {v:.2f}" for name, v in measures.items()), measures=measures)


def measured(results: Sequence[Result]) -> dict[str, float]:
    """Return the mean score, its parts, and the mean score of every kind of page, in percent."""
    figures = mean_score(results)
    parts = {name: 100 * mean for name in MEASURES if (mean := mean_measure(results, name)) is not None}
    return {"score": figures.pop("score"), **parts, **figures}


def _protocol(prompt: str) -> Protocol:
    return Protocol(
        ask=lambda item: [user_turn(prompt, item.images)],
        score=score,
        says="The mean of text and order by edit distance, and of the tables' TEDS; boxes by IoU if there are any.",
        max_new_tokens=MAX_NEW_TOKENS,
    )


def _task(language: str, name: str) -> Task:
    return Task(
        name=f"documents_{language}",
        title=f"Drawn pages in {name} as Markdown: articles, tables, forms and receipts",
        layout="is drawn; --fonts takes a folder of fonts, --data one with text/en.txt or text/zh.txt",
        read=read_in(language),
        protocols={"vl2": _protocol(read_prompt()), "deepseek-ocr": _protocol(read_prompt("DeepSeek-OCR"))},
        metric=measured,
        is_mean=True,
        count=50,
    )


ENGLISH, CHINESE = _task("en", "English"), _task("zh", "Chinese")
