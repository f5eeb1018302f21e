"""Sets of questions, documents, tables, conversations and pages: the right turns, and bad rows that stop nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.datasets.layouts import layout, picture, read, said, write_parquet, write_tar
from vl2.datasets.question_answers import OPTION_LETTER, SHORT_ANSWER
from vl2.datasets.web_sets import repetition
from vl2.errors import UserError


def short(question: str) -> str:
    return f"<0>{question}\n{SHORT_ANSWER}"


@pytest.mark.parametrize(
    ("name", "image", "expected", "num_problems"),
    [
        ("vqav2", "train2014/COCO_train2014_000000000009.jpg", [("What animal is it?", "dog")], 2),
        ("gqa", "images/2354786.jpg", [("Is the sky dark?", "yes")], 1),
        ("docvqa", "documents/xnbl0037_1.png", [("what is the date?", "1/8/93")], 2),
        ("infovqa", "infographicsvqa_images/20471.jpeg", [("How many?", "3")], 1),
        (
            "chartqa",
            "train/png/41699051005347.png",
            [("What is the value in 2019?", "0.57"), ("How many bars?", "14")],
            1,
        ),
    ],
)
def test_short_answers(
    tmp_path: Path, name: str, image: str, expected: list[tuple[str, str]], num_problems: int
) -> None:
    records, problems = read(name, layout(tmp_path, name, [image]))
    assert [tuple(said(r)) for r in records] == [(short(question), answer) for question, answer in expected]
    assert [r.images[0].path for r in records] == [image] * len(expected)
    assert len(problems) == num_problems


def test_an_image_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    _, problems = read("docvqa", layout(tmp_path, "docvqa", ["documents/xnbl0037_1.png"]))
    assert problems[0].why == "image '../secret.png' leads out of the folder"


def test_textvqa_takes_the_most_frequent_answer_and_hints_at_the_text_now_and_then(tmp_path: Path) -> None:
    folder = layout(tmp_path, "textvqa", ["train_images/0054c91397f2fe05.jpg"])
    records, problems = read("textvqa", folder)
    assert {said(r)[1] for r in records} == {"nokia"}
    hinted = ["Reference OCR token: NOKIA, 3310" in said(r)[0] for r in records]
    assert set(hinted) == {True, False}
    assert len(problems) == 1


def test_ai2d_draws_the_letters_that_it_asks_for(tmp_path: Path) -> None:
    folder = layout(tmp_path, "ai2d", [f"images/{n}.png" for n in range(3)])
    records, problems = read("ai2d", folder)
    lettered, plain = records
    assert said(plain) == [
        f"<0>What eats the leaf?\nA. cat\nB. caterpillar\nC. dog\nD. fish\n{OPTION_LETTER}",
        "B",
    ]
    assert plain.images[0].path == "images/0.png"
    assert lettered.images[0].data is not None
    drawn = Image.open(io.BytesIO(lettered.images[0].data))
    assert drawn.getpixel((6, 6)) == (255, 255, 255)
    assert drawn.getpixel((50, 40)) == (128, 128, 128)
    assert [p.why for p in problems] == ["correctAnswer must be in 0..0, got 4"]
    assert [r.id for r in read("ai2d", folder, split="test")[0]] == []  # its annotation is not there: a problem


def test_pubtabnet_puts_cells_into_the_structure(tmp_path: Path) -> None:
    records, problems = read("pubtabnet", layout(tmp_path, "pubtabnet", ["train/PMC1_007_00.png"]))
    assert said(records[0])[1] == (
        "<table><thead><tr><td><b>A</b></td><td>b</td></tr></thead>"
        '<tbody><tr><td colspan="2">12</td></tr></tbody></table>'
    )
    assert len(records) == 1
    assert "not valid JSON" in problems[0].why
    assert problems[1].why == "the table has 2 places for 1 cells"


def test_wikitables_as_text(tmp_path: Path) -> None:
    records, problems = read("wikitables", layout(tmp_path, "wikitables"))
    table = '| Year | Name |\n| --- | --- |\n| 2003 | The "A\\|B" team |\n| 2004 | two lines |'
    assert said(records[0]) == [f"{table}\n\nwhat was the last year?\n{SHORT_ANSWER}", "2004"]
    assert said(records[1])[1] == "a|b, c"
    assert {r.category for r in records} == {"text"}
    assert [p.why for p in problems] == [
        "csv/204-csv/1.csv cannot be read: FileNotFoundError",
        "a table must be named csv/FOLDER/FILE.csv, got 'csv/../590.csv'",
        "a line must have 4 cells, got 1",
    ]


def test_wikitables_drawn(tmp_path: Path) -> None:
    records, problems = read(
        "wikitables", layout(tmp_path, "wikitables"), draw=lambda table: picture((32, 8 * len(table)))
    )
    assert (records[0].images[0].width, records[0].images[0].height) == (32, 24)
    assert records[0].category == "table_chart"
    # One picture, however many are asked about it.
    assert len(records) == 1
    assert said(records[0])[:2] == [short("what was the last year?"), "2004"]
    assert said(records[0])[3] == "a|b, c"
    assert [p.why for p in problems] == [
        "a line must have 4 cells, got 1",
        "csv/204-csv/1.csv cannot be read: FileNotFoundError",
        "a table must be named csv/FOLDER/FILE.csv, got 'csv/../590.csv'",
    ]


def test_docvqa_as_it_is_released_now(tmp_path: Path) -> None:
    folder = layout(tmp_path, "docvqa", ["spdocvqa_images/xnbl0037_1.png"])
    (folder / "spdocvqa_qas").mkdir()
    (folder / "train_v1.0.json").rename(folder / "spdocvqa_qas" / "train_v1.0_withQT.json")
    records, _ = read("docvqa", folder)
    assert [r.images[0].path for r in records] == ["spdocvqa_images/xnbl0037_1.png"]


def test_infovqa_as_it_is_released_now(tmp_path: Path) -> None:
    folder = layout(tmp_path, "infovqa", ["infographicsvqa_images/20471.jpeg"])
    (folder / "infographicsvqa_qas").mkdir()
    name = "infographicsVQA_train_v1.0.json"
    (folder / name).rename(folder / "infographicsvqa_qas" / name)
    assert len(read("infovqa", folder)[0]) == 1


def test_wikitables_as_parquet(tmp_path: Path) -> None:
    write_parquet(tmp_path / "tables-00000-of-00001.parquet", [{"table_id": "1-1", "csv": 'a,b\n"x,y",z\n'}])
    row = {"id": "nt-1", "table_id": "1-1", "question": "which?", "answers": ["x,y", "z"]}
    write_parquet(tmp_path / "questions-00000-of-00001.parquet", [row, row | {"id": "nt-2", "table_id": "9"}])
    records, problems = read("wikitables", tmp_path)
    assert said(records[0])[0].startswith("| a | b |\n| --- | --- |\n| x,y | z |\n\nwhich?")
    assert said(records[0])[1] == "x,y, z"
    assert len(problems) == 1


def test_tabfact_asks_about_a_table_over_several_turns(tmp_path: Path) -> None:
    records, problems = read("tabfact", layout(tmp_path, "tabfact"))
    ask = "Is this true of the table? Answer yes or no."
    table = '| year | winner |\n| --- | --- |\n| 2003 | anna "a" |'
    first = f"winners\n\n{table}\n\nanna won in 2003\n{ask}"
    assert said(records[0]) == [first, "Yes", f"bob won twice\n{ask}", "No"]
    assert len(records) == len(problems) == 1


def test_iconqa(tmp_path: Path) -> None:
    images = [f"iconqa/train/{name}/image.png" for name in ("choose_txt/0", "choose_txt/7", "fill_in_blank/1")]
    records, problems = read("iconqa", layout(tmp_path, "iconqa", images))
    assert said(records[0]) == [f"<0>Which shape?\nA. circle\nB. square\n{OPTION_LETTER}", "B"]
    assert said(records[1]) == [short("How many?"), "4"]
    assert [p.why for p in problems] == ["answer must be in 0..0, got 3"]


def test_arxivqa_reasons_before_it_answers(tmp_path: Path) -> None:
    records, problems = read("arxivqa", layout(tmp_path, "arxivqa", ["images/1501.00713_1.jpg"]))
    assert said(records[0])[1] == "The line of y rises.\nThe answer is B."
    assert [p.why for p in problems] == ["label must be one of 1 letters, got 'C'"]


@pytest.mark.parametrize("name", ["cauldron", "docmatix"])
def test_the_cauldron(tmp_path: Path, name: str) -> None:
    image = {"bytes": picture(), "path": None}
    texts = [{"user": "What?", "assistant": "A.", "source": "x"}, {"user": "Where?", "assistant": "B.", "source": "x"}]
    rows = [{"images": images, "texts": t} for images, t in (([image] * 2, texts), ([image], []), ([], texts))]
    write_parquet(tmp_path / "ai2d" / "train-00000-of-00001-abc.parquet", rows)
    records, problems = read(name, tmp_path / "ai2d")
    assert said(records[0]) == ["<0><1>What?", "A.", "Where?", "B."]
    assert [r.id for r in records] == [f"{name}-ai2d-0", f"{name}-ai2d-2"]
    assert [r.category for r in records] == ["academic", "text"]
    assert [p.why for p in problems] == ["a record must have messages"]


def test_a_parquet_file_that_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    texts = [{"user": "What?", "assistant": "A.", "source": "x"}]
    write_parquet(tmp_path / "train-00001-of-00003.parquet", [{"images": [{"bytes": picture()}], "texts": texts}])
    write_parquet(tmp_path / "train-00002-of-00003.parquet", [{"pictures": 1}])
    (tmp_path / "train-00000-of-00003.parquet").write_bytes(b"PAR1 cut short")
    records, problems = read("cauldron", tmp_path)
    assert len(records) == 1
    assert [p.where for p in problems] == ["train-00000-of-00003.parquet row 0", "train-00002-of-00003.parquet"]


def test_llava(tmp_path: Path) -> None:
    records, problems = read("llava", layout(tmp_path, "llava", ["images/coco/train2017/1.jpg"]))
    assert [said(r) for r in records] == [
        ["<0>What is it?", "A dog.", "What colour?", "Brown."],
        ["Describe it.<0>", "A brown dog."],
        ["Hello", "Hi!"],
        ["First:<0>second:<1>Same?", "Yes."],
    ]
    assert [r.category for r in records] == ["vqa", "vqa", "text", "vqa"]
    assert problems[0].why == "the conversation has 2 <image> for 1 images"
    assert "the last message must be from the assistant" in problems[1].why


def test_sharegpt4v(tmp_path: Path) -> None:
    records, _ = read("sharegpt4v", layout(tmp_path, "sharegpt4v", ["sam/images/sa_1.jpg"]))
    assert said(records[0]) == ["What do you see?<0>", "In the image there is a dog."]
    assert records[0].category == "caption"


WORDS = "A page about dogs with enough words to be worth the reading of it."


def obelics(folder: Path, images: list[str | None], texts: list[str | None]) -> None:
    write_parquet(folder / "train-00000-of-00001.parquet", [{"images": images, "texts": texts, "metadata": "[]"}])


def fetched(folder: Path, sizes: dict[str, tuple[int, int]]) -> None:
    """Write what img2dataset leaves."""
    (folder / "images" / "00000").mkdir(parents=True)
    rows = []
    for number, (url, size) in enumerate(sizes.items()):
        (folder / "images" / "00000" / f"{number}.jpg").write_bytes(picture(size, "JPEG"))
        rows.append({"url": url, "key": str(number), "status": "success"})
    write_parquet(folder / "images" / "00000.parquet", [*rows, {"url": "u:lost", "key": "9", "status": "failed"}])


def test_obelics_alternates_images_and_text_and_drops_images_that_do_not_fit(tmp_path: Path) -> None:
    page = ["Title", "u:good", WORDS, "u:narrow", "u:small", "u:lost", "More text.", "u:other", "u:good", "The end."]
    page.append("u:good")
    urls = [place if place.startswith("u:") else None for place in page]
    obelics(tmp_path, urls, [None if place.startswith("u:") else place for place in page])
    fetched(tmp_path, {"u:good": (200, 160), "u:other": (300, 300), "u:narrow": (600, 200), "u:small": (90, 90)})
    records, problems = read("obelics", tmp_path)
    assert said(records[0]) == [f"Title\n\n<0>\n\n{WORDS}\n\nMore text.\n\n<1>\n\n<2>\n\nThe end."]
    assert [m.role for m in records[0].messages] == ["document"]
    assert not problems


@pytest.mark.parametrize(
    ("images", "texts", "why"),
    [
        ([None], [WORDS], "filtered: 0 images"),
        (["u:good", None], [None, "Few words."], "filtered: 2 words"),
        (["u:good", "u:good", "u:good", "u:good", None], [None] * 4 + [WORDS], "filtered: 14 words for 4 images"),
        (["u:good", None], [None, "buy it now and save today " * 9], "of the text repeats itself"),
        (["u:good", None, None], [None, WORDS], "not in the layout"),
    ],
)
def test_obelics_filters_pages(tmp_path: Path, images: list[str | None], texts: list[str | None], why: str) -> None:
    obelics(tmp_path, images, texts)
    fetched(tmp_path, {"u:good": (200, 160)})
    records, problems = read("obelics", tmp_path)
    assert not records
    assert why in problems[0].why


def test_repetition_is_a_share() -> None:
    assert repetition(["a", "b", "c"]) == 0
    assert repetition(list("abcdefgh")) == 0
    assert repetition(list("aaaaaaa")) == 1


def test_captions_that_img2dataset_fetched(tmp_path: Path) -> None:
    long = "A long caption. " * 20
    files = {
        "1.jpg": picture(format="JPEG"), "1.json": b"{}", "1.txt": b"A dog.",
        "2.txt": b"No image.",
        "3.png": picture(), "3.json": json.dumps({"caption": "alt", "vlm_caption": long}).encode(),
    }  # fmt: skip
    write_tar(tmp_path / "00000.tar", files)
    (tmp_path / "00001.tar").write_bytes(b"not an archive")
    records, problems = read("pixelprose", tmp_path)
    assert [said(r)[1] for r in records] == ["A dog.", long.strip()]
    assert [p.where for p in problems] == ["00000.tar 2", "00001.tar"]


def test_websight(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": picture(), "path": None}, "text": "<html></html>"}, {"image": None, "text": "<html>"}]
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", rows)
    records, problems = read("websight", tmp_path)
    assert said(records[0])[1] == "<html></html>"
    assert len(problems) == 1


def test_text_only_sets(tmp_path: Path) -> None:
    records, problems = read("gsm8k", layout(tmp_path, "gsm8k"))
    assert said(records[0]) == ["Half of 48?", "It is 48/2 = 24.\nThe answer is 24."]
    assert problems[0].why == "no question and answer: the row has problem"
    chinese, _ = read("coig_cqia", layout(tmp_path, "coig_cqia"))
    assert said(chinese[0]) == ["翻译\n\ndog", "狗"]
    assert chinese[0].language == "zh"
    with pytest.raises(UserError, match="is available in"):
        read("gsm8k", tmp_path / "gsm8k", language="zh")


def test_mathqa_shows_the_options_that_its_answers_name(tmp_path: Path) -> None:
    records, problems = read("mathqa", layout(tmp_path, "mathqa"))
    assert [said(r) for r in records] == [
        [
            "a basket holds 12 pears and a third of them is sold . how many are left ?\n"
            "a ) 4 , b ) 6 , c ) 8 , d ) 9 , e ) none of these",
            "a third of 12 is 4 . 12 - 4 = 8 . answer : option c",
        ]
    ]
    assert [p.why for p in problems] == ["not in the layout: KeyError: 'options'"]


def test_half_a_character_is_a_problem_of_its_row(tmp_path: Path) -> None:
    folder = layout(tmp_path, "llava", ["images/coco/train2017/1.jpg"])
    path = folder / "llava_v1_5_mix665k.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    turns = [{"from": "human", "value": "cut \ud83d here"}, {"from": "gpt", "value": "Yes."}]
    path.write_text(json.dumps([{"id": "x", "conversations": turns}, *rows]), encoding="utf-8")
    records, problems = read("llava", folder)
    assert len(records) == 4
    assert str(problems[0]) == "llava_v1_5_mix665k.json entry 0: message 0 has an unpaired surrogate (U+D83D)"


def test_easy_vqa_asks_everything_about_a_picture_in_training_and_one_thing_in_its_test(tmp_path: Path) -> None:
    images = ("train/images/0.png", "train/images/1.png", "test/images/0.png")
    folder = layout(tmp_path, "easy_vqa", images)
    shape, absent = ("what is the blue shape?", "rectangle"), ("is there a triangle in the image?", "no")
    orders = set()
    for seed in range(8):
        records, problems = read("easy_vqa", folder, seed=seed)
        both, alone = map(said, records)
        first, second = (shape, absent) if both[1] == "rectangle" else (absent, shape)
        assert both == [f"<0>{first[0]}\n{SHORT_ANSWER}", first[1], *second]
        assert alone == [f"<0>what color is the shape?\n{SHORT_ANSWER}", "red"]
        orders.add(first[1])
    assert orders == {"rectangle", "no"}, "either question comes first"
    assert [problem.where for problem in problems] == ["image -1", "image 7"]
    tested, _ = read("easy_vqa", folder, split="test")
    assert [said(record)[1] for record in tested] == ["circle", "yes"]
    assert {record.id for record in tested}.isdisjoint(record.id for record in records)
