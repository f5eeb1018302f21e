"""`vl2 batch` beside what its job does: what is refused before anything is lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.reference import CHECKPOINTS
from vl2.errors import UserError

TINY = CHECKPOINTS / "tiny"


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"id": "a", "question": "Hi", "max_tokens": 2.0}\n{"id": "b", "question": "Hi", "top_k": 0.5}\n')
    return path


@pytest.fixture
def answerable(tmp_path: Path) -> Path:
    path = tmp_path / "answerable.jsonl"
    path.write_text('{"id": "a", "question": "Hi", "max_tokens": 2}\n{"id": "b", "question": "Hi", "max_tokens": 1}\n')
    return path


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("flags", "planned"), [((), 8 * 4096), (("--max-context", "100"), 800)], ids=["own context", "said"]
)
def test_all_positions_that_a_job_may_use_are_planned(
    vl2, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], planned: int
) -> None:
    seen = []

    def load(*_: object, cache_tokens: int, **__: object) -> None:
        seen.append(cache_tokens)
        raise UserError("enough")

    monkeypatch.setattr("vl2.infer.vlm.load", load)
    assert vl2("batch", asked, "-o", tmp_path / "out.jsonl", "-m", TINY, "-q", *flags).code == 1
    batch = ("--batch-size", "8", "--limit", "1", "--out", tmp_path / "evaluated")
    assert vl2("eval", "run", "presence", *batch, "-m", TINY, "-q", *flags).code == 1
    assert seen == [planned, planned]


def test_a_request_of_wrong_types_is_one_error_among_answers(vl2, asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    ran = vl2("batch", asked, "-o", out, "-m", TINY, "-q")
    assert (ran.code, ran.err) == (1, f"vl2: 1 of 2 items failed: the lines with an error in {out} say why\n")
    first, second = lines(out)
    assert first["text"] is not None
    assert second["error"] == "top_k must be a whole number, got 0.5"
    again = vl2("batch", asked, "-o", out, "-m", TINY, "-q")
    assert again.code == 1, "what failed before is not forgotten"


@pytest.mark.parametrize("what", ["weights", "cache"])
def test_other_weights_or_another_cache_are_another_job(vl2, answerable: Path, tmp_path: Path, what: str) -> None:
    asked = answerable
    command = ("batch", asked, "-o", tmp_path / "out.jsonl", "-m", TINY, "-q")
    assert vl2(*command).code == 0
    ran = vl2(*command, f"--{what}", "int8")
    assert ran.code == 1
    assert f"was begun with {what} auto, now it is int8" in ran.err


def test_a_model_that_is_not_there_costs_neither_the_job_nor_its_answers(vl2, answerable: Path, tmp_path: Path) -> None:
    asked = answerable
    out = tmp_path / "out.jsonl"
    assert vl2("batch", asked, "-o", out, "-m", "./typo", "-q").code == 1
    assert vl2("batch", asked, "-o", out, "-m", TINY, "-q").code == 0
    before = out.read_text()
    assert vl2("batch", asked, "-o", out, "-m", "./typo", "-q", "--fresh").code == 1
    assert out.read_text() == before
    assert vl2("batch", asked, "-o", out, "-m", TINY, "-q", "--fresh", "--weights", "int8").code == 0
    assert len(lines(out)) == 2


def test_the_requests_are_never_the_output(vl2, asked: Path, nothing_loads) -> None:
    before = asked.read_text()
    ran = vl2("batch", asked, "-o", asked, "-m", TINY, "--fresh")
    assert (ran.code, ran.err) == (1, f"vl2: -o {asked} is one of the inputs: name another file\n")
    assert asked.read_text() == before


def photos(tmp_path: Path, *names: str) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in names:
        Image.new("RGB", (60, 40), "white").save(folder / name)
    return folder


ASK = ("--ask", "Hi", "-m", TINY, "-q", "--max-new-tokens", "2")


def test_a_drawn_picture_is_called_as_its_image(vl2, tmp_path: Path) -> None:
    folder = photos(tmp_path, "bill.png", "SCAN.JPG")
    ran = vl2("batch", folder, "-o", tmp_path / "o.jsonl", "--draw", tmp_path / "drawn", *ASK)
    assert ran.code == 0, ran.err
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["SCAN.png", "bill.png"]


def test_drawn_pictures_are_no_input_of_the_next_run(vl2, tmp_path: Path) -> None:
    folder = photos(tmp_path, "bill.png")
    command = ("batch", folder, "-o", folder / "o.jsonl", "--draw", folder / "drawn", *ASK)
    assert vl2(*command).code == 0
    assert vl2(*command).code == 0
    assert [line["id"] for line in lines(folder / "o.jsonl")] == ["bill.png"]


def test_coco_names_the_query_and_pictures_that_are_there(vl2, tmp_path: Path) -> None:
    folder = photos(tmp_path, "bill.png")
    asked = ("--locate", "the red mug", "-m", TINY, "-q", "--max-new-tokens", "40", "--constrained")
    assert vl2("batch", folder, "-o", tmp_path / "o.jsonl", "--coco", tmp_path / "c.json", *asked).code == 0
    coco = json.loads((tmp_path / "c.json").read_text())
    assert coco["categories"] == [{"id": 1, "name": "the red mug"}]
    assert [Image.open(image["file_name"]).size for image in coco["images"]] == [(60, 40)]


def test_the_pages_of_a_pdf_file_become_pictures_for_coco(vl2, tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    pages = [Image.new("RGB", (100, 140), color) for color in ("white", "red")]
    pages[0].save(tmp_path / "report.pdf", save_all=True, append_images=pages[1:])
    ran = vl2("batch", tmp_path / "report.pdf", "-o", tmp_path / "o.jsonl", "--coco", tmp_path / "c.json", *ASK)
    assert ran.code == 0, ran.err
    images = json.loads((tmp_path / "c.json").read_text())["images"]
    assert [Path(image["file_name"]).name for image in images] == ["report-1.png", "report-2.png"]
    assert [Image.open(image["file_name"]).size for image in images] == [(i["width"], i["height"]) for i in images]
    assert Image.open(images[1]["file_name"]).getpixel((50, 50))[0] > 200


def test_json_that_is_cut_off_is_an_error_of_its_item(vl2, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "string", "minLength": 50}}, "required": ["a"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "response_format": wanted}
    asked, out = tmp_path / "requests.jsonl", tmp_path / "o.jsonl"
    short = {"id": "a", "question": "Hi", "max_tokens": 5, "response_format": wanted}
    asked.write_text(json.dumps(short) + "\n" + json.dumps({"custom_id": "b", "body": body}) + "\n")
    ran = vl2("batch", asked, "-o", out, "-m", TINY, "-q")
    assert (ran.code, "2 of 2 items failed" in ran.err) == (1, True)
    first, second = lines(out)
    assert "the JSON answer of 5 tokens was cut off" in str(first["error"])
    assert "text" not in first
    assert "was cut off" in second["response"]["body"]["error"]["message"]


@pytest.mark.usefixtures("nothing_loads")
def test_what_could_not_be_written_is_refused_before_the_model_loads(vl2, tmp_path: Path) -> None:
    folder = photos(tmp_path, "bill.png")
    (tmp_path / "file").write_text("")
    out = ("-o", tmp_path / "o.jsonl")
    for flags, says in (
        (("-o", tmp_path / "file" / "o.jsonl"), "file is not a folder"),
        (("-o", tmp_path / "file" / "o.md"), "file is not a folder"),
        (("-o", tmp_path / "o.txt"), "-o must be a .jsonl file, a .md file or a folder"),
        ((*out, "--draw", tmp_path / "file"), "file is not a folder"),
        ((*out, "--draw", folder), "would write over the picture bill.png"),
        ((*out, "--coco", folder), "--coco must name a file"),
        ((*out, "--coco", tmp_path / "file" / "c.json"), "file is not a folder"),
        ((*out, "--coco", tmp_path / "o.jsonl"), "is another file of this job"),
        ((*out, "--dpi", "0"), "dpi must be in 18..600, got 0"),
        ((*out, "--temperature", "-1"), "temperature must be at least 0"),
        ((*out, "--device", "gpu"), "device must be auto"),
    ):
        ran = vl2("batch", folder, "--ask", "Hi", *flags)
        assert (ran.code, ran.out, ran.err.count("\n"), says in ran.err) == (1, "", 1, True), ran.err
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("command", [("read",), ("batch", "--read", "-o", "o.jsonl")], ids=lambda c: c[0])
def test_pdf_files_without_their_library_are_refused_before_the_model_loads(
    vl2, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.4")
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    monkeypatch.chdir(tmp_path)
    ran = vl2(*command, "report.pdf")
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert ran.err.startswith("vl2: PDF files need pypdfium2: pip install ")


@pytest.mark.usefixtures("nothing_loads")
def test_a_file_that_read_cannot_open_is_told_before_the_model_loads(vl2, tmp_path: Path) -> None:
    folder = photos(tmp_path, "a.png", "b.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:60])
    for files, says in (
        ((folder / "a.png", folder / "b.png"), "b.png: it is damaged or cut off"),
        ((folder,), "b.png: it is damaged or cut off"),
        ((folder / "a.png", folder / "no.png"), "no file or folder"),
        ((folder / "a.png", "--device", "gpu"), "device must be auto"),
        ((folder / "a.png", "--dpi", "601"), "dpi must be in 18..600"),
        ((folder / "a.png", "--pages", "0"), "--pages must be like"),
    ):
        ran = vl2("read", *files)
        assert (ran.code, ran.out, ran.err.count("\n"), says in ran.err) == (1, "", 1, True), ran.err
