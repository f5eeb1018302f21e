"""Sets of the paper in their own layouts: documents with fetched images, formulas, screens, people, tables of PDFs.

The expected values are those that the fixtures hold.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.datasets.layouts import layout, picture, queries, read, said, write_parquet, write_tar
from vl2.data.record import Part
from vl2.datasets import CATALOG
from vl2.datasets.question_answers import OPTION_LETTER, SHORT_ANSWER, TRANSCRIBE
from vl2.datasets.reading_sets import FORMULA_TO_LATEX, READ_NUMBER
from vl2.errors import UserError


def fetched(folder: Path, urls: dict[str, tuple[int, int] | None]) -> None:
    """Write images as img2dataset does, or a failed download for None."""
    rows = []
    for number, (url, size) in enumerate(urls.items()):
        key = f"{number:09d}"
        rows.append({"url": url, "key": key, "status": "failed_to_download" if size is None else "success"})
        if size is not None:
            (folder / "images" / "00000").mkdir(parents=True, exist_ok=True)
            (folder / "images" / "00000" / f"{key}.jpg").write_bytes(picture(size, "JPEG"))
    write_parquet(folder / "images" / "00000.parquet", rows)


SIZES = {"a": (400, 266), "b": (300, 300), "gone": None}
URLS = {f"http://example.com/{name}.jpg": size for name, size in SIZES.items()}


@pytest.mark.parametrize("is_packed", [True, False])
def test_wit_puts_the_image_between_its_section_and_its_caption(tmp_path: Path, is_packed: bool) -> None:
    folder = layout(tmp_path, "wit")
    fetched(folder, URLS)
    if is_packed:  # as it is released
        [table] = folder.glob("*.tsv")
        table.with_name(f"{table.name}.gz").write_bytes(gzip.compress(table.read_bytes()))
        table.unlink()
    records, problems = read("wit", folder)
    harbor, town = records
    assert said(harbor) == [
        "Oslo: Harbour\n\nThe harbour lies in the south of the city.\nIt was built long ago.\n\n"
        '<0>\n\nThe "old" harbour seen from the fortress in spring'
    ]
    # Without a caption the image comes before the text, which would teach nothing after it.
    assert said(town) == ["Bergen\n\n<0>\n\nBergen er en by i Norge med mange hus av tre ved havnen."]
    assert [record.language for record in records] == ["en", "nb"]
    assert (harbor.images[0].path, harbor.images[0].width) == ("images/00000/000000000.jpg", 400)
    assert [p.why for p in problems] == ["its image was not downloaded, or is too small or too narrow"]


def test_a_damaged_table_of_wit_is_a_problem_after_its_rows(tmp_path: Path) -> None:
    folder = layout(tmp_path, "wit")
    fetched(folder, URLS)
    [table] = folder.glob("*.tsv")
    packed = gzip.compress(table.read_bytes())
    table.with_name(f"{table.name}.gz").write_bytes(packed[: len(packed) // 2])
    table.unlink()
    _, problems = read("wit", folder)
    assert "the file cannot be read: EOFError" in problems[-1].why


def test_wanjuan_keeps_the_places_of_images(tmp_path: Path) -> None:
    folder = layout(tmp_path, "wanjuan")
    fetched(folder, URLS)
    records, problems = read("wanjuan", folder)
    assert [said(record) for record in records] == [["<0>\n\n奋斗百年路\n走进觉悟社当年的房间。\n\n1月19日，天津。"]]
    assert records[0].messages[0].parts[0] == Part(image=0)
    assert (records[0].language, records[0].category) == ("zh", "interleaved")
    assert problems[0].why == "filtered: 0 images, 1 to 30 are allowed"
    assert "not valid JSON" in problems[1].why


def test_latex_ocr_takes_the_line_that_an_image_is_called_after(tmp_path: Path) -> None:
    names = ["train/0000002.png", "train/0000000.png", "train/0000007.png", "val/0000001.png"]
    records, problems = read("latex_ocr", layout(tmp_path, "latex_ocr", names))
    assert [said(record)[1] for record in records] == ["a+b", "\\int_0^1 x\\,dx"]
    assert {said(record)[0].removeprefix("<0>") for record in records} <= set(FORMULA_TO_LATEX)
    assert [p.why for p in problems] == ["its name must be the number of a line, below 4"]
    assert [said(r)[1] for r in read("latex_ocr", tmp_path / "latex_ocr", split="val")[0]] == ["\\frac{1}{2}"]


def test_hme100k_reads_labels_after_a_tab(tmp_path: Path) -> None:
    records, problems = read("hme100k", layout(tmp_path, "hme100k", [f"train_images/train_{n}.jpg" for n in (0, 1)]))
    assert [said(record)[1] for record in records] == ["x ^ { 2 } + 1", "\\frac { a } { b }"]
    assert records[0].images[0].path == "train_images/train_0.jpg"
    assert [p.why for p in problems] == [
        "a line must be a file name, a tab and a formula",
        "image train_images/train_9.jpg is not there",
    ]


def test_rendered_text_is_read_line_by_line(tmp_path: Path) -> None:
    def annotation(*lines: str) -> bytes:
        return json.dumps({"ocr_annotation": {"text": list(lines), "bounding_boxes": []}}).encode()

    files = {
        "0001.png": picture(),
        "0001.json": annotation("Call me", "Ishmael."),
        "0002.png": picture(),
        "0002.json": b"{}",
        "0003.json": annotation("no picture"),
    }
    write_tar(tmp_path / "00000.tar", files)
    records, problems = read("rendered_text", tmp_path)
    assert [said(record)[1] for record in records] == ["Call me\nIshmael."]
    assert said(records[0])[0].removeprefix("<0>") in TRANSCRIBE
    assert [p.why for p in problems] == [
        "not in the layout: KeyError: 'ocr_annotation'",
        "not in the layout: KeyError: '.png'",
    ]


def test_groma_grounds_the_phrases_of_its_answers(tmp_path: Path) -> None:
    records, problems = read("groma", layout(tmp_path, "groma", ["images/7.jpg"]))
    [record] = records
    assert said(record) == [
        "<0><|grounding|>What is on the lawn?",
        "Two {box:0} play on the {box:1}.",
        "<|grounding|>Are they <happy>?",
        "Yes, both tails wag.",
    ]
    assert [(each.label, each.boxes_px) for each in record.objects] == [
        ("dogs", ((20.0, 8.0, 50.0, 38.0), (4.0, 8.0, 14.0, 28.0))),
        ("lawn", ((0.0, 0.0, 64.0, 48.0),)),
    ]
    assert record.category == "grounded_conversation"
    assert [p.why for p in problems] == [
        "the answer has more <ground_box> than the 1 in box_inds",
        "a question must not refer to regions, got 'What is <roi><refer_box></roi>?'",
        "its boxes are for 640 x 480 px, but the image has 64 x 48",
    ]


def test_all_seeing_keeps_the_boxes_of_phrases_and_the_text_of_predicates(tmp_path: Path) -> None:
    records, problems = read("as_v2", layout(tmp_path, "as_v2", ["coco/train2017/3.jpg"]))
    [record] = records
    assert said(record) == [
        "<0><|grounding|>What does the picture show?",
        "Two {box:0} lie on a {box:1}.",
        "Who sees {box:2}?",
        "Nobody does.",
    ]
    # The picture of 64 x 48 px lies in a square of 64 px, 8 px below its top: 125 and 874 are its upper and lower edge.
    third, top, bottom = 64 / 3, 125 / 999 * 64 - 8, 874 / 999 * 64 - 8
    assert 0 <= top < 0.01
    assert 47.9 < bottom <= 48
    left, right = (0.0, top, third, bottom), (2 * third, top, 64.0, bottom)
    assert [each.label for each in record.objects] == ["dogs", "lawn", "this animal"]
    for each, boxes in zip(record.objects, [(left, right), ((0.0, third - 8, 64.0, bottom),), (right,)], strict=True):
        assert [pytest.approx(box) for box in boxes] == list(each.boxes_px)
    assert "a <box> must follow a <ref> or <pred>" in problems[0].why
    assert "has no area" in problems[1].why  # it lies in the padding above the picture
    again, _ = read("as_1b", tmp_path / "as_v2", split="rec_conversation_22k")
    assert said(again[0]) == said(record)


def test_hdsrc_reads_the_numbers_of_both_banks(tmp_path: Path) -> None:
    images = ["CAR-A/a_train_images/a_car_000001.png", "CAR-A/a_train_images/a_car_000002.png"]
    records, problems = read("hdsrc", layout(tmp_path, "hdsrc", [*images, "CAR-B/b_train_images/b_car_000001.png"]))
    assert [said(record)[1] for record in records] == ["1530", "0077", "9004"]
    assert {said(record)[0].removeprefix("<0>") for record in records} <= set(READ_NUMBER)
    assert records[0].images[0].path == images[0]
    assert [p.why for p in problems] == [
        "image CAR-A/a_train_images/a_car_000009.png is not there",
        "a line must be a file name, a tab and digits",
    ]


def test_wikihow_makes_a_document_of_each_method(tmp_path: Path) -> None:
    folder = layout(tmp_path, "wikihow")
    (folder / "wiki_images").mkdir()
    (folder / "wiki_images" / "17_0_0.png").write_bytes(picture((300, 200)))
    records, problems = read("wikihow", folder)
    assert [said(record) for record in records] == [
        [
            "How to Plant a Bean\nBeans grow on any sill.\nIn a Pot\n\n<0>\n\n"
            "Fill a pot with soil. Leave two fingers of room.\n\nWater it."
        ]
    ]
    assert [p.why for p in problems] == [
        "filtered: 0 images, 1 to 30 are allowed",  # the picture of the second method is not there
        "not in the layout: no methods",
    ]


def test_mavis_is_read_from_the_parquet_files_of_llava_onevision(tmp_path: Path) -> None:
    def row(id: str, image: dict[str, object] | None, question: str) -> dict[str, object]:
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "The answer is 4."}]
        return {"id": id, "image": image, "conversations": turns, "data_source": "mavis_math_rule_geo"}

    seen = {"bytes": picture(), "path": "1.png"}
    rows = [
        row("1", seen, "<image>\nHow long is AB?"),
        row("2", None, "What is 2 + 2?"),
        row("3", seen, "<image><image>?"),
    ]
    write_parquet(tmp_path / "train-00000-of-00001.parquet", rows)
    records, problems = read("mavis", tmp_path)
    assert [said(record) for record in records] == [
        ["<0>How long is AB?", "The answer is 4."],
        ["What is 2 + 2?", "The answer is 4."],
    ]
    assert [record.category for record in records] == ["reasoning", "text"]
    assert [p.why for p in problems] == ["the conversation has 2 <image> for 1 images"]


def candidate(box: str, **more: str) -> str:
    attributes = {"backend_node_id": "1", "bounding_box_rect": box, **more}
    return json.dumps({"tag": "input", "attributes": json.dumps(attributes)})


def test_mind2web_asks_for_the_element_of_the_next_action(tmp_path: Path) -> None:
    screenshot = {"bytes": picture(), "path": "a.jpg"}
    row = {"screenshot": screenshot, "operation": "{}", "confirmed_task": "rent a car"}
    hidden, corner = candidate("-1,-1,-1,-1"), candidate("0,0,8,8")
    actions = [
        ("[combobox]  City -> airport -> TYPE: Oslo: S", [hidden, candidate("4.5,8,20,10")]),
        ("[heading]   -> CLICK", [corner]),
        ("[link]  Go -> CLICK", [hidden]),
        ("[link]  Go -> CLICK", []),
        ("CLICK", [corner]),
    ]
    rows = [
        {**row, "action_uid": f"u{number}", "target_action_reprs": action, "pos_candidates": candidates}
        for number, (action, candidates) in enumerate(actions)
    ]
    write_parquet(tmp_path / "data" / "train-00000-of-00027-abc.parquet", rows)
    records, problems = read("mind2web", tmp_path)
    assert queries(records) == {"City -> airport": [(4.5, 8.0, 24.5, 18.0)], "heading": [(0.0, 0.0, 8.0, 8.0)]}
    assert {record.category for record in records} == {"gui"}
    assert [p.why for p in problems] == [
        "its element is not on the screenshot",
        "its element is not on the screenshot",
        "an action must be [role] text -> ACTION, got 'CLICK'",
    ]


def test_kvqa_gives_the_caption_that_names_the_people(tmp_path: Path) -> None:
    folder = layout(tmp_path, "kvqa", ["KVQAimgs/100.jpg", "KVQAimgs/101.jpg"])
    records, problems = read("kvqa", folder, split="all")
    assert said(records[0]) == [
        f"<0>The image's caption: Ada Byron (left) and Charles Babbage.\nWho is in the left?\n{SHORT_ANSWER}",
        "Ada Byron",
        f"How many people in the image were born after 1800?\n{SHORT_ANSWER}",
        "1",
    ]
    assert said(records[1]) == [f"<0>Who is this?\n{SHORT_ANSWER}", "Emmy Noether"]
    assert "not in the layout: ValueError" in problems[0].why
    assert problems[1].why == "image '../secret.jpg' leads out of the folder"
    with pytest.raises(UserError, match="the split of kvqa must be all, got 'train'"):
        read("kvqa", folder)


@pytest.mark.parametrize("place", ["img/", ""])
def test_smart101_asks_with_its_five_options(tmp_path: Path, place: str) -> None:
    images = [f"SMART101-Data/7/{place}puzzle_7_{n}.png" for n in (1, 2)]
    records, problems = read("smart101", layout(tmp_path, "smart101", images), split="all")
    assert [said(record) for record in records] == [
        [f"<0>How many shapes, in all, are there?\nA. 3\nB. 4\nC. 5\nD. 6\nE. 7\n{OPTION_LETTER}", "C"]
    ]
    assert problems[0].why == "Answer must be one of A, B, C, D, E, got '12'"
    assert problems[1].why.endswith("puzzle_7_9.png is not there")


def test_fintabnet_cuts_the_table_out_of_its_page(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    folder = layout(tmp_path, "fintabnet")
    # A page of 200 x 300 points, red where the table's box [40, 100, 140, 160] is, counted from the lower left.
    page = Image.new("RGB", (200, 300), "white")
    ImageDraw.Draw(page).rectangle((40, 300 - 160, 139, 300 - 101), fill="red")
    (folder / "pdf" / "ADS" / "2007").mkdir(parents=True)
    page.save(folder / "pdf" / "ADS" / "2007" / "page_112.pdf", resolution=72)
    records, problems = read("fintabnet", folder)
    [record] = records
    assert said(record)[1] == '<table><tr><td>Year</td><td>20</td></tr><tr><td colspan="2"></td></tr></table>'
    stored = record.images[0]
    assert stored.data is not None
    drawn = Image.open(io.BytesIO(stored.data)).convert("RGB")
    # 100 x 60 points with a margin of 6 on each side, two pixels a point.
    assert drawn.size == (stored.width, stored.height) == (224, 144)
    red = [drawn.getpixel(at) for at in ((16, 16), (112, 72), (207, 127))]
    assert all(r > 200 and g < 60 for r, g, _ in red), red
    white = [drawn.getpixel(at) for at in ((4, 72), (219, 72), (112, 4), (112, 139))]
    assert all(min(pixel) > 200 for pixel in white), white
    assert [p.why for p in problems] == [
        "the table's box [40.0, 100.0, 340.0, 160.0] is not on its page of 200 x 300",
        "page '../page.pdf' leads out of the folder",
        "page ADS/2007/page_1.pdf is not there",
    ]


def test_the_sets_of_this_file_are_in_the_catalog_with_license_and_home() -> None:
    names = (
        "wit", "wanjuan", "latex_ocr", "hme100k", "rendered_text", "groma", "mind2web", "kvqa", "smart101", "fintabnet",
        "as_1b", "as_v2", "hdsrc", "mavis", "wikihow",
    )  # fmt: skip
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for name in names:
        entry = CATALOG[name]
        assert entry.licence
        assert entry.used != "not named by the paper"
        assert entry.home in page, name
        assert f"`{name}` |" in page, name
