"""The command `vl2 read`: what it prints and writes, that it goes on, and what it refuses before a model loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.documents.pages import SENTENCES, Answering, write_pdf
from tests.documents.test_read import EXPECTED, TRUTH, pages_of_a_report
from vl2.cli.flags import ModelFlags
from vl2.documents.pdf_page import PdfContent, read_pdf_page
from vl2.errors import UserError

pytest.importorskip("pypdfium2")


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_pdf(tmp_path / "report.pdf", *pages_of_a_report())


@pytest.mark.usefixtures("nothing_loads")
def test_a_text_layer_needs_no_model(vl2, report: Path) -> None:
    ran = vl2("read", report.name, "--tables", "markdown")
    assert (ran.code, ran.out) == (0, EXPECTED + "\n"), ran.err
    ran = vl2("read", report.name, "--headers", "--pages", "2")
    assert ran.out == "Annual report\n\nows on both banks.\n\n2\n"


@pytest.mark.usefixtures("nothing_loads")
def test_each_format(vl2, report: Path) -> None:
    html = vl2("read", report.name, "--format", "html").out
    assert "<h1 data-page=" in html
    assert "<td>1901</td>" in html
    document = json.loads(vl2("read", report.name, "--format", "json").out)
    assert document["name"] == "report.pdf"
    assert [page["size_px"] for page in document["pages"]] == [[1224, 1584]] * 2
    (joined,) = [block for block in document["blocks"] if len(block["places"]) == 2]
    assert joined["text"] == "In spring the cattle leave the meadows on both banks."
    assert [place["page"] for place in joined["places"]] == [1, 2]
    assert joined["confidence"] is None
    lines = [json.loads(line) for line in vl2("read", report.name, "--json").out.splitlines()]
    assert [(line["id"], line["page"], line["source"]) for line in lines] == [
        ("report.pdf#1", 1, "text layer"),
        ("report.pdf#2", 2, "text layer"),
    ]


@pytest.mark.usefixtures("nothing_loads")
def test_docling_is_loaded_by_its_own_library(vl2, report: Path) -> None:
    types = pytest.importorskip("docling_core.types.doc")
    ran = vl2("read", report.name, "--format", "docling", "-o", "out.json", "-q")
    assert ran.code == 0, ran.err
    document = types.DoclingDocument.load_from_json(Path("out.json"))
    assert "Rivers" in [item.text for item in document.texts]
    assert len(document.tables) == 1


def test_a_stopped_run_goes_on(vl2, report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("read", report.name, "-o", "out.md", "--text-layer", "never", "--tables", "markdown")
    first = Answering(*TRUTH)
    monkeypatch.setattr(ModelFlags, "load", lambda *_, **__: first)
    assert vl2(*command).code == 0
    assert Path("out.md").read_text() == EXPECTED + "\n"
    log = Path("out.pages.jsonl")
    log.write_text(log.read_text().splitlines(keepends=True)[0])  # as if it had been stopped after the first page
    again = Answering(TRUTH[1])
    monkeypatch.setattr(ModelFlags, "load", lambda *_, **__: again)
    assert vl2(*command).code == 0
    assert len(again.asked) == 1
    assert Path("out.md").read_text() == EXPECTED + "\n"
    ran = vl2(*command, "--dpi", "100")
    assert (ran.code, "was begun with dpi 144, now it is 100" in ran.err) == (1, True)
    assert vl2("read", report.name, "-o", "out.md", "--fresh", "-q").code == 0


@pytest.mark.usefixtures("nothing_loads")
def test_a_folder_gets_a_file_for_each_document(vl2, report: Path, tmp_path: Path) -> None:
    write_pdf(tmp_path / "b.pdf", [])
    assert vl2("read", report.name, "b.pdf", "-o", "out", "-q").code == 0
    names = sorted(path.name for path in Path("out").iterdir())
    assert names == ["b.md", "pages.jsonl", "pages.jsonl.job", "report.md"]
    assert Path("out/report.md").read_text().startswith(f"# Rivers\n\n{SENTENCES}\n")


@pytest.mark.usefixtures("nothing_loads")
def test_pages_are_drawn_with_their_blocks(vl2, report: Path) -> None:
    assert vl2("read", report.name, "--draw", "drawn", "-q").code == 0
    with Image.open("drawn/report-1.png") as drawn:
        assert drawn.size == (1224, 1584)
        assert (213, 94, 0) in {color for _, color in drawn.getcolors(1 << 20) or ()}  # the first color of boxes


def test_errors_of_pages_are_told_and_the_rest_is_printed(vl2, report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_on_page_2(path: Path, number: int) -> PdfContent:
        if number == 2:
            raise UserError("it is damaged")
        return read_pdf_page(path, number)

    monkeypatch.setattr("vl2.documents.sources.read_pdf_page", fail_on_page_2)
    ran = vl2("read", report.name)
    assert ran.code == 1
    assert "# Rivers" in ran.out
    assert "vl2: page 2 of report.pdf: it is damaged" in ran.err
    assert "1 of 2 pages could not be read" in ran.err


@pytest.mark.usefixtures("nothing_loads")
def test_what_cannot_be_is_refused_first(vl2, report: Path, tmp_path: Path) -> None:
    Path("file").write_text("")
    write_pdf(tmp_path / "b.pdf", [])
    for flags, says in (
        (("-o", "out.txt"), "-o must be a .md file or a folder for --format md, got out.txt"),
        (("-o", "file/out.md"), "file is not a folder"),
        (("b.pdf", "-o", "out.md"), "-o out.md is one file, and there are 2 documents"),
        (("b.pdf", "--format", "json"), "--format json of several documents needs a folder"),
        (("--json", "-o", "out.md"), "--json prints a line per page"),
        (("--figures", "file"), "file is not a folder"),
        (("report.pdf",), "two items are called 'report.pdf#1'"),
        (("--pages", "7"), "there is no page 7 in report.pdf"),
        (("--temperature", "-1"), "temperature must be at least 0"),
        (("http://127.0.0.1:9/a",), "is not on the public internet"),
    ):
        ran = vl2("read", report.name, *flags)
        assert (ran.code, ran.out, ran.err.count("\n"), says in ran.err) == (1, "", 1, True), (flags, ran.err)
