"""COCO JSON, Markdown, OpenAI's lines and settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vl2.batch_job.exports import file_stem, file_stems, to_coco, write_coco
from vl2.batch_job.item import BatchItem, BatchRequest, LineFile, answer_line, error_line
from vl2.batch_job.markdown_export import MarkdownExport
from vl2.batch_job.run_batch import remove_job, store_settings
from vl2.errors import UserError
from vl2.infer.reply import Reply, Usage
from vl2.infer.sampling import GenerateOptions
from vl2.process.conversation import user_turn
from vl2.process.grounding import without_boxes
from vl2.process.page_blocks import to_markdown

TEXT = (
    "See <|ref|>cup<|/ref|><|det|>[[0, 0, 500, 999], [1, 1, 2, 2]]<|/det|> and <|ref|>dog<|/ref|><|det|>[[9, 9, 9, 9]]"
)


def item(name: str, form: Any = "plain", query: str | None = None, image: Any = None, **about: Any) -> BatchItem:
    turns = [user_turn("What?", [] if image is None else [image])]
    asked = BatchRequest(turns=turns, options=GenerateOptions())
    return BatchItem(id=name, read=lambda: asked, about=about, form=form, query=query)


def reply(text: str = TEXT) -> Reply:
    usage = Usage(prompt_tokens=9, visual_tokens=4, completion_tokens=3)
    return Reply(text=text, token_ids=(1, 2, 3), finish_reason="repetition", usage=usage, image_sizes=((999, 999),))


def test_coco_lists_images_boxes_and_categories() -> None:
    a, b, c = (item(name, file=name, image=f"photos/{name}") for name in ("a.png", "b.png", "c.png"))
    d = item("d.pdf#2", file="d.pdf", page=2)
    lines = [
        answer_line(a, reply(), "m"),
        error_line(b, UserError("bad")),
        answer_line(c, reply("nothing"), "m"),
        answer_line(d, reply(), "m"),
    ]
    coco = to_coco(lines, [a, b, c, d], {"d.pdf#2": "boxes-pages/d-2.png"})
    assert [image["file_name"] for image in coco["images"]] == ["photos/a.png", "photos/c.png", "boxes-pages/d-2.png"]
    assert coco["images"][0] == {"id": 1, "file_name": "photos/a.png", "width": 999, "height": 999}
    assert coco["categories"] == [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}]
    assert coco["annotations"][0] == {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [0.0, 0.0, 500.0, 999.0], "area": 499500.0, "iscrowd": 0,
        "label": "cup",
    }  # fmt: skip
    assert [(a["image_id"], a["category_id"]) for a in coco["annotations"]] == [(1, 1), (1, 1), (1, 2), (3, 1), (3, 1),
                                                                               (3, 2)]  # fmt: skip


def test_the_category_of_a_search_is_its_query_whatever_the_model_calls_it() -> None:
    items = [item("a", query="the red  mug", image="a.png"), item("b", query="a spoon", image="b.png")]
    coco = to_coco([answer_line(items[0], reply(), "m")], items, {})
    assert coco["categories"] == [{"id": 1, "name": "the red mug"}, {"id": 2, "name": "a spoon"}]
    assert {a["category_id"] for a in coco["annotations"]} == {1}
    assert [a["label"] for a in coco["annotations"]] == ["cup", "cup", "dog"]


def test_labels_that_differ_in_capitals_and_blanks_are_one_category() -> None:
    boxes = "<|ref|>{}<|/ref|><|det|>[[0, 0, 9, 9]]<|/det|>"
    described = item("a", image="a.png")
    text = "".join(map(boxes.format, ("Cup", "cup ", "a  dog", "A dog", " ")))
    coco = to_coco([answer_line(described, reply(text), "m")], [described], {})
    assert [category["name"] for category in coco["categories"]] == ["cup", "a dog", "object"]


def test_a_picture_without_a_path_has_a_stated_name() -> None:
    items = [
        item("web", image="https://example.org/a/desk.jpg?size=2"),
        item("inline", image="data:image/png;base64,AAAA"),
        item("bare", image="https://example.org"),
    ]
    images = to_coco([answer_line(each, reply(), "m") for each in items], items, {})["images"]
    assert [(image["file_name"], image.get("coco_url")) for image in images] == [
        ("desk.jpg", "https://example.org/a/desk.jpg?size=2"),
        ("inline", None),
        ("example.org", "https://example.org"),
    ]


def test_markdown_has_a_heading_per_file_and_no_tags(tmp_path: Path) -> None:
    lines = [
        answer_line(item("d.pdf#1", file="d.pdf", page=1), reply(), "m"),
        answer_line(item("d.pdf#2", file="d.pdf", page=2), reply("two"), "m"),
        error_line(item("e.png", file="e.png"), UserError("bad")),
    ]
    MarkdownExport(path=tmp_path / "all.md").write(lines)
    assert (tmp_path / "all.md").read_text() == (
        "# d.pdf\n\n<!-- page 1 -->\n\nSee cup and dog\n\n<!-- page 2 -->\n\ntwo\n\n# e.png\n\n*not read: bad*\n"
    )
    MarkdownExport(path=tmp_path / "each").write(lines)
    assert sorted(p.name for p in (tmp_path / "each").iterdir()) == ["d.md", "e.md"]


PAGE = (
    "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 100]]<|/det|>\n# Report\n"
    "<|ref|>image<|/ref|><|det|>[[0, 500, 999, 999], [10, 10, 10, 20]]<|/det|>\n"
    "<|ref|>table<|/ref|><|det|>[[0, 0, 9, 9]]<|/det|>\n<table><tr><td>a</td><td>b</td></tr></table>"
)


def test_pages_of_deepseek_ocr_have_blocks_figures_and_tables(tmp_path: Path) -> None:
    """The lower half of the page is red, and that is where the answer says that its figure lies."""
    page = Image.new("RGB", (50, 100), "white")
    page.paste((255, 0, 0), (0, 50, 50, 100))
    page.save(tmp_path / "scan 1.png")
    items = [item("scan 1.png", image=str(tmp_path / "scan 1.png"), file="scan 1.png"), item("gone", file="gone")]
    answered = replace(reply(PAGE), image_sizes=((50, 100),), kind="DeepSeek-OCR")
    line = answer_line(items[0], answered, "m")
    assert (line["text"], line["markdown"]) == (PAGE, to_markdown(answered.blocks))
    assert [block["type"] for block in line["blocks"]] == ["title", "image", "table"]
    openai = answer_line(replace(items[0], form="openai"), answered, "m")["response"]["body"]["choices"][0]["message"]
    assert (openai["blocks"], openai["markdown"]) == (line["blocks"], line["markdown"])
    lines = [line, error_line(items[1], UserError("bad"))]
    MarkdownExport(path=tmp_path / "all.md", items=items, tables="markdown").write(lines)
    stem = file_stem("scan 1")
    assert (tmp_path / "all.md").read_text() == (
        f"# scan 1.png\n\n# Report\n\n![image](all-figures/{stem}-1.png)\n\n| a | b |\n| --- | --- |\n\n"
        "# gone\n\n*not read: bad*\n"
    )
    with Image.open(tmp_path / "all-figures" / f"{stem}-1.png") as figure:
        assert (figure.size, figure.getextrema()[1:]) == ((50, 50), ((0, 0), (0, 0)))
    assert len(list((tmp_path / "all-figures").iterdir())) == 1
    MarkdownExport(path=tmp_path / "each", items=items).write(lines)
    text = (tmp_path / "each" / f"{stem}.md").read_text()
    assert f"(figures/{stem}-1.png)" in text
    assert "<table>" in text
    assert (tmp_path / "each" / "figures" / f"{stem}-1.png").exists()


@pytest.mark.parametrize(
    ("answer", "plain"), [("a <|grounding|>b", "a b"), ("<|ref|>x<|/ref|><|det|>[[1,", "x"), ("plain", "plain")]
)
def test_tags_go_and_labels_stay(answer: str, plain: str) -> None:
    assert without_boxes(answer) == plain


def test_openai_lines_have_openai_shapes() -> None:
    line = answer_line(item("r1", "openai"), reply(), "vl2")
    assert (line["custom_id"], line["error"], line["response"]["status_code"]) == ("r1", None, 200)
    body = line["response"]["body"]
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["message"]["content"] == TEXT
    assert body["choices"][0]["message"]["boxes"][0]["label"] == "cup"
    assert body["usage"]["total_tokens"] == 12
    failed = error_line(item("r2", "openai"), UserError("a\nb"))
    assert (failed["response"]["status_code"], failed["response"]["body"]["error"]["message"]) == (400, "a b")


def test_names_of_files_are_safe_and_different() -> None:
    assert file_stem("page-1.png") == "page-1.png"
    odd = ["a/b.png", "a_b.png", "../../etc/passwd", "ä", "x" * 300, "", "报告.pdf"]
    stems = [file_stem(name) for name in odd]
    assert len(set(stems)) == len(odd)
    assert all(len(stem) < 100 and "/" not in stem and not stem.startswith(".") for stem in stems)


def test_files_are_called_as_their_items_without_a_second_ending() -> None:
    assert file_stems(["bill.png", "SCAN.JPG", "report.pdf#2", "report.pdf#10", "notes", "v1.5"]) == {
        "bill.png": "bill", "SCAN.JPG": "SCAN", "report.pdf#2": "report-2", "report.pdf#10": "report-10",
        "notes": "notes", "v1.5": "v1.5",
    }  # fmt: skip


def test_no_two_items_share_a_file_also_where_capitals_are_not_told_apart() -> None:
    assert file_stems(["a.png", "a.jpg"]) == {"a.png": "a-png", "a.jpg": "a-jpg"}
    names = [
        "a.png",
        "a.jpg",
        "A.PNG",
        "a-png",
        "a-png.png",
        "a-jpg",
        "报告.pdf",
        "报告.png",
        "r.pdf#1",
        "r-1.png",
        "",
        "x/y",
    ]
    stems = file_stems(names)
    assert set(stems) == set(names)
    assert len({stem.casefold() for stem in stems.values()}) == len(names)


def test_other_settings_are_refused_and_forgotten_ones_are_not(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    store_settings(out, {"dpi": "144"})
    out.write_text('{"id": "a"}\n')
    store_settings(out, {"dpi": "144"})
    with pytest.raises(UserError, match="begun with dpi 144, now it is 72"):
        store_settings(out, {"dpi": "72"})
    remove_job(out)
    store_settings(out, {"dpi": "72"})


def test_a_job_without_an_answer_yet_takes_other_settings(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    store_settings(out, {"model": "typo"})
    store_settings(out, {"model": "nano"})
    out.write_text('{"id": "a"}\n')
    store_settings(out, {"model": "nano"})


def test_a_job_of_before_a_setting_was_held_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    store_settings(out, {"dpi": "144"})
    out.write_text('{"id": "a"}\n')
    store_settings(out, {"dpi": "144", "weights": "int4"})


def test_what_no_job_wrote_or_one_is_writing_is_not_forgotten(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"id": "mine"}\n')
    with pytest.raises(UserError, match="is not the output of a job, so --fresh does not"):
        remove_job(out)
    (tmp_path / "out.jsonl.job").write_text("{}")
    with LineFile(out), pytest.raises(UserError, match="in use by another run"):
        remove_job(out)
    assert out.read_text() == '{"id": "mine"}\n'
    remove_job(out)
    assert out.read_text() == ""


def test_a_name_that_is_no_utf8_is_read_back_as_it_was(tmp_path: Path) -> None:
    name = b"r\xe9.png".decode("utf-8", "surrogateescape")
    with LineFile(tmp_path / "out.jsonl") as file:
        file.append({"id": name, "text": "报告"})
    with LineFile(tmp_path / "out.jsonl") as file:
        assert file.keys == {name}


def test_a_file_that_is_no_job_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine\n")
    with pytest.raises(UserError, match="exists and is not the output of a job"):
        store_settings(out, {})
    assert out.read_text() == "mine\n"


def test_a_file_that_cannot_be_written_is_told_and_leaves_the_old_one(tmp_path: Path) -> None:
    write_coco([], [], tmp_path / "coco.json")
    old = json.loads((tmp_path / "coco.json").read_text())
    assert old["images"] == []
    with pytest.raises(UserError, match="cannot write"):
        write_coco([], [], tmp_path / "coco.json" / "below")
    assert not list(tmp_path.glob("*.part"))
