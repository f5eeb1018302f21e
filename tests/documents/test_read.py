"""Reading end to end: a perfect reader loses nothing, errors stay with their page, and a stopped run goes on."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.documents.office_files import png
from tests.documents.pages import SENTENCES, Answering, texts, write_pdf
from tests.pdf_files import Filled, Mark, Placed, Ruled, paragraph, placed_pdf
from vl2.batch_job.item import LineFile
from vl2.documents import read, to_markdown
from vl2.documents.read import PageReader, assemble, resume
from vl2.documents.sources import SourceOptions, Sources
from vl2.errors import UserError
from vl2.infer.reply import Reply

pytest.importorskip("pypdfium2")


def pages_of_a_report() -> list[list[Mark]]:
    """Return two pages with a header, page numbers, a table that goes on, and a word that the page break cuts."""
    rows = [("Year", "Boats"), ("1901", "12"), ("1902", "9")]
    table: list[Mark] = [Ruled(x0=72, y0=y, x1=272, y1=y) for y in (200, 220, 240, 260)]
    table += [Ruled(x0=x, y0=200, x1=x, y1=260) for x in (72, 172, 272)]
    table += [
        Placed(text=text, x=76 + 100 * i, y=214 + 20 * n) for n, row in enumerate(rows) for i, text in enumerate(row)
    ]
    first = [Placed(text="Annual report", x=72, y=40), Placed(text="Rivers", x=72, y=90, size=16),
             *paragraph(SENTENCES, x=72, y=120, width=400), *table,
             Placed(text="In spring the cattle leave the mead-", x=72, y=700),
             Placed(text="1", x=300, y=760)]  # fmt: skip
    second = [Placed(text="Annual report", x=72, y=40), Placed(text="ows on both banks.", x=72, y=90),
              Placed(text="2", x=300, y=760)]  # fmt: skip
    return [first, second]


# What a model that makes no mistake says of these two pages, in the form of DeepSeek-OCR.
TRUTH = (
    "<|ref|>header<|/ref|><|det|>[[117, 40, 250, 55]]<|/det|>\nAnnual report\n\n"
    "<|ref|>title<|/ref|><|det|>[[117, 95, 250, 120]]<|/det|>\n# Rivers\n\n"
    f"<|ref|>text<|/ref|><|det|>[[117, 140, 800, 230]]<|/det|>\n{SENTENCES}\n\n"
    "<|ref|>table<|/ref|><|det|>[[117, 250, 445, 330]]<|/det|>\n<table><tr><td>Year</td><td>Boats</td></tr>"
    "<tr><td>1901</td><td>12</td></tr><tr><td>1902</td><td>9</td></tr></table>\n\n"
    "<|ref|>text<|/ref|><|det|>[[117, 870, 600, 890]]<|/det|>\nIn spring the cattle leave the mead-\n\n"
    "<|ref|>page_number<|/ref|><|det|>[[480, 945, 500, 960]]<|/det|>\n1",
    "<|ref|>header<|/ref|><|det|>[[117, 40, 250, 55]]<|/det|>\nAnnual report\n\n"
    "<|ref|>text<|/ref|><|det|>[[117, 100, 400, 120]]<|/det|>\nows on both banks.\n\n"
    "<|ref|>page_number<|/ref|><|det|>[[480, 945, 500, 960]]<|/det|>\n2",
)
EXPECTED = (
    f"# Rivers\n\n{SENTENCES}\n\n| Year | Boats |\n| --- | --- |\n| 1901 | 12 |\n| 1902 | 9 |\n\n"
    "In spring the cattle leave the meadows on both banks."
)


def test_a_perfect_reader_of_pictures_and_the_text_layer_give_the_same_document(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", *pages_of_a_report())
    model = Answering(*TRUTH)
    (by_layer,) = read(path, model)
    assert model.asked == []
    (by_model,) = read(path, model, text_layer="never")
    assert len(model.asked) == 2
    for document in (by_layer, by_model):
        assert to_markdown(document.body, tables="markdown") == EXPECTED
        furniture = [(block.type, block.text) for block in document.blocks if block.is_furniture]
        header = ("page_header", "Annual report")
        assert furniture == [header, ("page_number", "1"), header, ("page_number", "2")]
        assert document.errors == ()
    # Both say where the blocks stand, in pixels of the same rendering, to within some 2 % of the page.
    for ours, theirs in zip(by_layer.body, by_model.body, strict=True):
        for a, b in zip(ours.places, theirs.places, strict=True):
            assert a.page == b.page
            assert a.box_px is not None
            assert b.box_px is not None
            assert abs(a.box_px[1] - b.box_px[1]) < 0.02 * 1584


def test_only_pages_without_a_good_layer_are_shown_to_the_model(tmp_path: Path) -> None:
    scan: list[Mark] = [Filled(x0=0, y0=0, x1=612, y1=792)]
    path = write_pdf(tmp_path / "a.pdf", paragraph(SENTENCES, x=72, y=100, width=400), scan, scan)
    model = Answering("<|ref|>text<|/ref|><|det|>[[0, 0, 9, 9]]<|/det|>\nscanned", "second")
    (document,) = read(path, model, pages="1-2")
    assert [(page.number, page.source) for page in document.pages] == [(1, "text layer"), (2, "model")]
    assert texts(document.blocks) == [("paragraph", SENTENCES), ("paragraph", "scanned")]
    (without,) = read(path)
    assert [number for number, _ in without.errors] == [2, 3]
    assert "no model was given" in without.errors[0][1]


def test_figures_are_cut_out_of_pages(tmp_path: Path) -> None:
    marks = [*paragraph(SENTENCES, x=72, y=100, width=400), Filled(x0=100, y0=200, x1=300, y1=400)]
    (document,) = read(write_pdf(tmp_path / "a.pdf", marks), dpi=72, figures=tmp_path / "figures")
    (figure,) = [block for block in document.blocks if block.type == "figure"]
    with Image.open(tmp_path / "figures" / "a-1-1.png") as cut:
        assert cut.size == (200, 200)
        assert cut.getpixel((100, 100)) == (64, 64, 64)
    assert figure.figures[0].endswith("figures/a-1-1.png")


def test_a_page_that_fails_leaves_the_others(tmp_path: Path) -> None:
    class Failing(Answering):
        def _answer(self, request: Any) -> Reply:
            if request.messages[0].images[0].size[0] > 200:
                raise UserError("the prompt is too long")
            return super()._answer(request)

    for name, width in (("a", 100), ("b", 300), ("c", 100)):
        Image.new("RGB", (width, 50), "white").save(tmp_path / f"{name}.png")
    documents = list(read(tmp_path, Failing("one", "three", "one", "three", kind="DeepSeek-VL2")))
    assert [document.errors for document in documents] == [(), ((1, "the prompt is too long"),), ()]
    assert [to_markdown(document.body) for document in documents][1] == ""


def test_a_stopped_run_goes_on_and_asks_for_nothing_twice(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.pdf", *pages_of_a_report())
    model = Answering(*TRUTH)
    with Sources([path], SourceOptions(text_layer="never")) as sources:
        reader = PageReader(load_model=lambda: model)
        with LineFile(tmp_path / "log.jsonl") as log:
            next(resume(sources.items, log, reader.read))  # stopped after the first page
        with LineFile(tmp_path / "log.jsonl") as log:
            assert len(log) == 1
            again = Answering(TRUTH[1])
            rest = PageReader(load_model=lambda: again)
            (document,) = assemble(resume(sources.items, log, rest.read))
        assert len(again.asked) == 1
        with LineFile(tmp_path / "log.jsonl") as log:
            (whole,) = assemble(resume(sources.items, log, lambda _: iter(())))
    assert to_markdown(document.body, tables="markdown") == EXPECTED
    assert whole.to_dict() == document.to_dict()
    other = write_pdf(tmp_path / "b.pdf", [])
    with (
        Sources([other]) as others,
        LineFile(tmp_path / "log.jsonl") as log,
        pytest.raises(UserError, match="belongs to another job"),
    ):
        list(resume(others.items, log, reader.read))


@pytest.fixture
def site() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Serve these bytes by path on this machine."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = files.get(self.path)
            self.send_response(404 if data is None else 200)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    server.server_close()


def test_urls_are_read_by_what_they_are(site: tuple[str, dict[str, bytes]]) -> None:
    address, files = site
    files["/report?id=1"] = placed_pdf([paragraph(SENTENCES, x=72, y=100, width=400)])
    files["/photo"] = png()
    documents = list(read([f"{address}/report?id=1", f"{address}/photo"], Answering("a word"), allow_private_urls=True))
    assert [document.name for document in documents] == [f"{address}/report?id=1", f"{address}/photo"]
    assert [to_markdown(document.body) for document in documents] == [SENTENCES, "a word"]


def test_urls_of_this_machine_are_refused_and_too_large_ones_too(
    site: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, files = site
    files["/a"] = b"x" * 2000
    with pytest.raises(UserError, match=r"its address 127\.0\.0\.1 is not on the public internet"):
        list(read(f"{address}/a"))
    monkeypatch.setattr("vl2.documents.sources.MAX_URL_BYTES", 1000)
    with pytest.raises(UserError, match="more than the limit of 1000 bytes"):
        list(read(f"{address}/a", allow_private_urls=True))


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        ([], {}, "say what to read"),
        (["no.pdf"], {}, "no file or folder no.pdf"),
        (["a.xyz"], {}, "a.xyz is not a supported file"),
        (["http://example.org"] * 101, {}, "at most 100 URLs are read at once, got 101"),
        (["a.pdf"], {"dpi": 10}, "dpi must be in 18..600, got 10"),
        (["a.pdf"], {"text_layer": "maybe"}, "text_layer must be auto, always or never"),
        (["a.pdf"], {"pages": "x"}, "--pages must be like 3, 2-5 or 2-"),
        (["a.pdf"], {"pages": "7-9"}, "there is no page 7-9 in a.pdf"),
        (["bad.pdf"], {}, "cannot open bad.pdf: it is not a PDF, or damaged"),
    ],
)
def test_what_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: Sequence[str], options: dict[str, Any], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pdf(tmp_path / "a.pdf", [Placed(text="a", x=72, y=72)])
    (tmp_path / "a.xyz").write_text("")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 no")
    with pytest.raises(UserError) as raised:
        list(read(inputs, **options))
    assert says in str(raised.value)
