"""Sets with boxes: what is there is boxed in pixels, what is absent is really absent, bad rows do not stop the rest."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.datasets.layouts import SIZE, layout, picture, queries, read, said, write_parquet, write_tar
from vl2.data.locate_phrases import ABSENT
from vl2.data.raw_files import measure
from vl2.errors import UserError
from vl2.process.image import open_image

COCO_IMAGES = ("train2017/000000000009.jpg", "train2017/000000000025.jpg")
DOG = [(0.0, 20.0, 8.5, 28.0), (10.0, 5.0, 30.0, 15.0)]  # the lower one first


def test_coco_boxes_in_pixels_and_bad_ones_reported(tmp_path: Path) -> None:
    records, problems = read("coco", layout(tmp_path, "coco", COCO_IMAGES), negatives=0)
    assert [r.id for r in records] == ["coco-9", "coco-25"]
    first = records[0]
    # The crowd of cars is not asked for; the person is cut where the image ends.
    assert queries([first]) == {
        "dog": sorted(DOG, key=lambda b: b[1]),
        "person": [(30.0, 10.0, 64.0, 48.0)],
    } or queries([first]) == {"dog": [DOG[1], DOG[0]], "person": [(30.0, 10.0, 64.0, 48.0)]}
    assert [p.why for p in problems] == [
        "person: box [60.0, 40.0, 60.0, 45.0] has no area in an image of 64 x 48 px",
        "image train2017/000000000030.jpg is not there",
    ]
    assert first.images[0].path == "train2017/000000000009.jpg"
    question, answer = said(first)[:2]
    assert question.startswith("<0>")
    assert "<|ref|>" in question
    assert answer == "{box:0}"


def test_coco_says_only_of_absent_things_that_they_are_absent(tmp_path: Path) -> None:
    folder = layout(tmp_path, "coco", COCO_IMAGES)
    for seed in range(5):
        records, _ = read("coco", folder, negatives=1.0, seed=seed)
        for record in records:
            absent = {label for label, boxes in queries([record]).items() if boxes is None}
            # Image 9 has a crowd of cars, image 25 a person whose box is bad: neither is absent.
            assert absent == ({"cup"} if record.id == "coco-9" else absent & {"dog", "car"})
            assert absent
    assert read("coco", folder, negatives=1.0, seed=3) == read("coco", folder, negatives=1.0, seed=3)


def test_coco_in_chinese_asks_for_what_has_a_chinese_name(tmp_path: Path) -> None:
    records, _ = read("coco", layout(tmp_path, "coco", COCO_IMAGES), language="zh", negatives=1.0)
    assert {r.language for r in records} == {"zh"}
    assert {o.label for r in records for o in r.objects if o.boxes_px} == {"狗", "杯子"}
    texts = [text for r in records for text in said(r)]
    assert {wording.replace("{label}", "杯子") for wording in ABSENT["zh"]} & set(texts)
    assert not any("dog" in text or "There is" in text for text in texts)


def test_coco_captions(tmp_path: Path) -> None:
    records, problems = read("coco_captions", layout(tmp_path, "coco", COCO_IMAGES))
    assert [said(r)[1] for r in records] == ["A dog and a person.", "A cup."]
    assert [p.why for p in problems] == ["the answer is empty", "not in the layout: KeyError: 7"]


def test_boxes_for_another_size_are_refused(tmp_path: Path) -> None:
    folder = layout(tmp_path, "coco", COCO_IMAGES)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", SIZE).save(folder / COCO_IMAGES[0], "JPEG", exif=turned)
    (folder / COCO_IMAGES[1]).write_bytes(picture((32, 24)))
    records, problems = read("coco", folder)
    assert not records
    assert problems[0].why == "its boxes are for 64 x 48 px, but the image has 48 x 64"
    assert problems[1].why == "its boxes are for 64 x 48 px, but the image has 32 x 24"


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("format", ["JPEG", "TIFF", "PNG"])
def test_a_picture_is_measured_as_it_is_opened(format: str, orientation: int) -> None:
    turned = Image.Exif()
    turned[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", SIZE).save(file, format, exif=turned)
    assert measure(file.getvalue(), "a") == open_image(file.getvalue()).size
    assert measure(file.getvalue(), "a") == (SIZE if orientation < 5 else SIZE[::-1])


def test_v3det(tmp_path: Path) -> None:
    records, problems = read("v3det", layout(tmp_path, "v3det", ["images/a00/1.jpg"]))
    assert queries(records) == {"dog": [DOG[1]]}
    assert len(problems) == 1


@pytest.mark.parametrize("place", ["train/patch8", "images/train/patch8", "images/v1/patch8"])
def test_objects365_in_patches(tmp_path: Path, place: str) -> None:
    image = f"{place}/objects365_v1_00420917.jpg"
    records, problems = read("objects365", layout(tmp_path, "objects365", [image]), negatives=0)
    assert records[0].images[0].path == image
    assert queries(records) == {"dog": [DOG[1]]}  # most of the person's box lies outside
    assert "lies outside" in problems[0].why
    assert "is not there" in problems[1].why


def test_refcoco_as_json(tmp_path: Path) -> None:
    images = [f"train2014/COCO_train2014_0000000000{n}.jpg" for n in (72, 73)]
    records, problems = read("refcoco", layout(tmp_path, "refcoco", images), negatives=1.0)
    assert queries(records[:1]) == {"brown dog": [DOG[1]], "left one": [DOG[1]], "the blue cup": None}
    assert queries(records[1:]) == {"the blue cup": [(2.0, 4.0, 32.0, 24.0)], "brown dog": None}
    assert [p.why for p in problems] == ["not in the layout: KeyError: 99"]


def test_refcoco_as_parquet(tmp_path: Path) -> None:
    row = {"question_id": "1", "image": {"bytes": picture(), "path": "a.jpg"}, "question": "?", "bbox": [2, 4, 30, 20]}
    broken = row | {"image": {"bytes": b"not an image", "path": "b.jpg"}}
    rows = [row | {"answer": ["left cup", "the cup"]}, broken | {"answer": ["x"]}]
    write_parquet(tmp_path / "data" / "val-00000-of-00001.parquet", rows)
    records, problems = read("refcocog", tmp_path, split="val")
    assert queries(records) == {"left cup": [(2.0, 4.0, 32.0, 24.0)], "the cup": [(2.0, 4.0, 32.0, 24.0)]}
    assert [p.why for p in problems] == ["image 1 cannot be read: UnidentifiedImageError"]
    with pytest.raises(UserError, match="nothing is known to be absent"):
        read("refcoco", tmp_path, split="val", negatives=0.5)


def test_refcoco_from_its_pickle_as_from_json(tmp_path: Path) -> None:
    images = [f"train2014/COCO_train2014_0000000000{n}.jpg" for n in (72, 73)]
    folder = layout(tmp_path, "refcoco", images)
    expected = read("refcoco", folder, negatives=1.0)
    refs = json.loads((folder / "refs(unc).json").read_text())
    (folder / "refs(unc).json").unlink()
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    records, problems = read("refcoco", folder, negatives=1.0)
    assert records == expected[0]
    assert [problem.why for problem in problems] == [problem.why for problem in expected[1]]


def test_refcoco_refuses_a_pickle_that_calls_something(tmp_path: Path) -> None:
    (tmp_path / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(UserError, match=r"refs\(unc\).p is refused: .* with GLOBAL \('os system'\)"):
        read("refcoco", tmp_path)


def test_photos_with_boxes_in_parquet(tmp_path: Path) -> None:
    ace = {"name": "ace", "x0": 2.0, "y0": 4.0, "x1": 32.0, "y1": 24.0}
    row = {"id": "1", "upstream_split": "train", "image": picture(), "width": 64, "height": 48, "objects": [ace]}
    others = [row | {"id": "2", "upstream_split": "test"}, row | {"objects": [ace | {"name": "joker"}]}]
    write_parquet(tmp_path / "cards.parquet", [row, *others])
    records, problems = read("cards", tmp_path, negatives=1.0)
    found = queries(records)
    assert found.pop("ace card") == [(2.0, 4.0, 32.0, 24.0)]
    assert list(found.values()) == [None]
    assert "got 'joker'" in problems[0].why


def of_splits(folder: Path, name: str) -> dict[str, Any]:
    """Write a set whose rows name their splits, train and val, and return the settings to read it."""
    if name in ("refcoco", "pubtabnet"):
        layout(folder, name)
        return {"folder": folder / name}
    row = {"id": "1", "image": picture(), "objects": []}
    write_parquet(folder / f"{name}.parquet", [row | {"upstream_split": split} for split in ("val", "train", None)])
    return {"folder": folder}


@pytest.mark.parametrize("name", ["bccd", "cards", "refcoco", "pubtabnet"])
def test_a_split_that_no_row_is_of_is_an_error(name: str, tmp_path: Path) -> None:
    settings = of_splits(tmp_path, name)
    with pytest.raises(UserError, match="no row is of the split 'trian': there are train, val"):
        read(name, split="trian", **settings)
    read(name, split="val", **settings)


def test_a_row_that_names_no_split_is_a_problem(tmp_path: Path) -> None:
    settings = of_splits(tmp_path, "bccd")
    assert [p.why for p in read("bccd", **settings)[1]] == ["upstream_split must name a split, got None"]
    assert read("bccd", split="all", **settings)[1] == []


def test_waveui(tmp_path: Path) -> None:
    row = {"image": {"bytes": picture()}, "bbox": [2.0, 4.0, 32.0, 24.0], "resolution": [64, 48], "name": "OK"}
    rows = [row | {"description": "The button to go on."}, row | {"description": None}, row | {"resolution": [1, 1]}]
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", [{"description": None} | r for r in rows])
    records, problems = read("waveui", tmp_path)
    assert queries(records) == {label: [(2.0, 4.0, 32.0, 24.0)] for label in ("The button to go on", "OK")}
    assert {r.category for r in records} == {"gui"}
    assert [p.why for p in problems] == ["its boxes are for 1 x 1 px, but the image has 64 x 48"]


def test_flickr30k_entities(tmp_path: Path) -> None:
    images = [f"flickr30k-images/{n}.jpg" for n in (36979, 36980, 36981)]
    records, problems = read("flickr30k_entities", layout(tmp_path, "flickr30k_entities", images))
    caption, located = records
    assert said(caption)[1] == "{box:0} throw {box:1} in the air ."
    assert said(caption)[0].startswith("<0><|grounding|>")
    men, ball = [(2.0, 3.0, 20.0, 40.0), (30.0, 3.0, 50.0, 40.0)], [(30.0, 3.0, 50.0, 40.0)]
    assert queries([caption]) == queries([located]) == {"Two men": men, "a ball": ball}
    assert (caption.category, located.category) == ("grounded_conversation", "grounding")
    assert ["declares entities" in problems[0].why, "not valid XML" in problems[1].why] == [True, True]


def test_a_phrase_of_two_captions_is_located_by_the_boxes_of_both(tmp_path: Path) -> None:
    folder = layout(tmp_path, "flickr30k_entities", ["flickr30k-images/36979.jpg"])
    (folder / "train.txt").write_text("36979\n")
    lines = ("[/EN#2/other A ball] flies .", "[/EN#1/people A ball] , they say .", "[/EN#2/other a ball] again .")
    (folder / "Sentences" / "36979.txt").write_text("\n".join(lines), encoding="utf-8")
    records, problems = read("flickr30k_entities", folder)
    assert not problems
    assert queries(records[-1:]) == {"a ball": [(2.0, 3.0, 20.0, 40.0), (30.0, 3.0, 50.0, 40.0)]}
    assert [queries([record]) for record in records[:2]] == [
        {"A ball": [(30.0, 3.0, 50.0, 40.0)]},
        {"A ball": [(2.0, 3.0, 20.0, 40.0), (30.0, 3.0, 50.0, 40.0)]},
    ]


GRIT = {
    "key": "000000012",
    "caption": "a dog on a mat",
    "noun_chunks": [[0, 5, 0.25, 0.5, 0.5, 1.0, 0.9], [9, 14, 0.0, 0.0, 1.0, 1.0, 0.8]],
    "ref_exps": [[0, 14, 0.25, 0.5, 0.5, 1.0, 0.9]],
}


def check_grit(folder: Path, num_problems: int) -> None:
    records, problems = read("grit", folder)
    assert [said(r)[1] for r in records] == ["{box:0} on {box:1}", "{box:0}"]
    assert queries(records[:1]) == {"a dog": [(16.0, 24.0, 32.0, 48.0)], "a mat": [(0.0, 0.0, 64.0, 48.0)]}
    assert queries(records[1:]) == {"a dog on a mat": [(16.0, 24.0, 32.0, 48.0)]}
    assert len(problems) == num_problems


def test_grit_as_parquet_beside_images(tmp_path: Path) -> None:
    write_parquet(tmp_path / "coyo_0_snappy.parquet", [GRIT, GRIT | {"key": "000000013"}])
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "000000012.jpg").write_bytes(picture(format="JPEG"))
    check_grit(tmp_path, 1)


def test_grit_as_img2dataset_writes_it(tmp_path: Path) -> None:
    files = {"1.jpg": picture(), "1.json": json.dumps(GRIT).encode(), "1.txt": b"", "2.json": b"{}"}
    write_tar(tmp_path / "00000.tar", files)
    check_grit(tmp_path, 1)


def line(text: str, y: int) -> dict[str, object]:
    return {"text": text, "x0": 2.0, "y0": float(y), "x1": 40.0, "y1": y + 7.0}


def test_sroie_as_files(tmp_path: Path) -> None:
    folder = layout(tmp_path, "sroie", [f"train/img/00{n}.jpg" for n in range(4)])
    records, problems = read("sroie", folder, negatives=1.0)
    assert [r.id for r in records] == [
        "sroie-000-text", "sroie-000-fields", "sroie-000-lines", "sroie-001-text", "sroie-001-lines",
    ]  # fmt: skip
    assert said(records[0])[1] == "SHOP, LTD 0\nTOTAL 9.00"
    assert said(records[1])[2:4] == ["What is the date?", "25/12/2018"]
    assert queries(records[2:3]) == {"SHOP, LTD 0": [(2.0, 3.0, 40.0, 10.0)], "TOTAL 9.00": [(2.0, 20.0, 30.0, 28.0)]}
    assert {k for k, boxes in queries(records[4:]).items() if boxes is None} == {"SHOP, LTD 0", "TOTAL 9.00"}
    assert [p.why for p in problems] == [
        "a line must be eight numbers and a text, got '1,2,3,broken'",
        "003.jpg has no file of boxes",
    ]


def test_sroie_as_the_challenge_released_it(tmp_path: Path) -> None:
    folder = layout(tmp_path, "sroie_task", ["0325updated.task1train(626p)/X000.jpg"])
    records, problems = read("sroie", folder)
    assert [said(r)[1] for r in records] == ["SHOP", "SHOP", "{box:0}"]
    assert not problems


def test_sroie_as_parquet(tmp_path: Path) -> None:
    fields = {"company": "SHOP", "date": None, "address": None, "total": "9.00"}
    good = {"id": "7", "image": picture(), "width": 64, "height": 48, "lines": [line("SHOP", 3), line("9.00", 20)]}
    write_parquet(tmp_path / "train-00000-of-00001.parquet", [good | fields, good | fields | {"image": b""}])
    records, problems = read("sroie", tmp_path)
    assert said(records[1])[1:] == ["SHOP", "What is the total?", "9.00"]
    assert queries(records) == {"SHOP": [(2.0, 3.0, 40.0, 10.0)], "9.00": [(2.0, 20.0, 40.0, 27.0)]}
    assert len(problems) == 1


def test_nlvr_as_files(tmp_path: Path) -> None:
    images = [f"train/images/4/train-3526-2-{n}.png" for n in range(6)]
    records, problems = read("nlvr", layout(tmp_path, "nlvr", images))
    assert len(records) == 6
    assert said(records[5])[1] == "Yes"
    assert records[5].images[0].path == images[5]
    assert "label must be true or false" in problems[0].why
    assert "is not there" in problems[1].why


def test_nlvr_as_parquet_with_its_objects(tmp_path: Path) -> None:
    square = {"panel": 0, "shape": "square", "color": "blue", "size": 20, "x0": 4, "y0": 5, "x1": 24, "y1": 25}
    row = {"id": "1-0-0", "image": picture(), "sentence": "There is one.", "label": False, "objects": [square]}
    write_parquet(tmp_path / "dev-00000-of-00001.parquet", [row, row | {"id": "1-0-1", "image": None}])
    records, problems = read("nlvr", tmp_path, split="dev", negatives=1.0)
    assert said(records[0])[1] == "No"
    found = queries(records[1:])
    assert found.pop("blue square") == [(4.0, 5.0, 24.0, 25.0)]
    assert list(found.values()) == [None]
    assert len(problems) == 1
