"""The preview shows what is trained and where boxes are, and nothing in a record can become code."""

from __future__ import annotations

import html
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.data.sample_records import good_records, grounded, text_only, two_images
from vl2.curate.contact_sheet import contact_sheet
from vl2.curate.preview import PreviewItem, choose, page, split_pieces
from vl2.data.record import Record
from vl2.data.store import Problem, Records, open_random, write_records
from vl2.process.processor import Processor

NANO = Path(__file__).parents[2] / "src" / "vl2" / "nano"


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_folder(NANO)


def opened(tmp_path: Path, *records: Record) -> Records:
    write_records(records, f"{tmp_path}/a.jsonl")
    return open_random(f"{tmp_path}/a.jsonl")


def shown(tmp_path: Path, processor: Processor, *records: Record) -> list[PreviewItem]:
    items = choose(opened(tmp_path, *records), processor, count=len(records), seed=0)
    assert all(isinstance(item, PreviewItem) for item in items)
    return [item for item in items if isinstance(item, PreviewItem)]


def hostile(attack: str) -> Record:
    values = grounded(f"id {attack}").to_dict()
    values |= {"source": attack, "language": attack, "licence": attack}
    values["objects"][0]["label"] = attack
    for message in values["messages"]:
        message["content"] = [part | ({"text": attack} if "text" in part else {}) for part in message["content"]]
    values["messages"][-1]["content"] = attack + " {box:0}"
    return Record.from_dict(values)


class Reader(HTMLParser):
    """Collect the elements and attributes that a browser would see."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><script>",
    "' onload='x",
    "&lt;",
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_text_of_a_record_becomes_markup(attack: str, tmp_path: Path, processor: Processor) -> None:
    items = shown(tmp_path, processor, hostile(attack))
    problem = Problem(place=items[0].place, id=attack, kind="image", why=attack)
    content = page(attack, [*items, problem])
    plain = Reader(page("t", [*shown(tmp_path / "b", processor, grounded("x")), problem]))
    seen = Reader(content)
    assert set(seen.tags) == set(plain.tags)
    assert "script" not in seen.tags
    assert seen.attributes == plain.attributes
    assert not any(name.startswith("on") for name in seen.attributes)
    assert all(address.startswith("data:image/jpeg;base64,") for address in seen.addresses)
    assert "default-src 'none'" in content
    assert "<script" not in content


def test_pieces_hold_every_token_and_say_which_are_trained(tmp_path: Path, processor: Processor) -> None:
    for item in shown(tmp_path, processor, *good_records(4)):
        pieces, counts = item.pieces, item.counts
        assert sum(piece.tokens for piece in pieces) == counts.total
        assert sum(piece.tokens for piece in pieces if piece.is_trained) == counts.trained
        assert sum(piece.tokens for piece in pieces if piece.image is not None) == counts.visual
        answers = "".join(piece.text for piece in pieces if piece.is_trained)
        assert answers.count("<｜end▁of▁sentence｜>") == sum(m.role == "assistant" for m in item.record.messages)
        assert "Where" not in answers
    text = "".join(piece.text for piece in shown(tmp_path / "b", processor, grounded("x"))[0].pieces)
    assert "Where is 红 🍎 <image>?" in text
    assert "<|ref|>apple<|/ref|><|det|>[[25, 83, 225, 333], [0, 0, 999, 999]]<|/det|>" in text


def test_pieces_of_any_tokens_say_what_the_tokenizer_says(processor: Processor) -> None:
    for content in ("🙂🙂 中文", "a\n\n b", "\ufffd<|User|>é", ""):
        sample = processor.encode([{"role": "user", "content": content}, {"role": "assistant", "content": "好🙂"}])
        text = "".join(piece.text for piece in split_pieces(sample, processor.tokenizer))
        assert text == processor.tokenizer.decode(sample.input_ids.tolist(), skip_special=False)


def test_the_page_shows_boxes_in_percent_and_all_counts(tmp_path: Path, processor: Processor) -> None:
    (item,) = shown(tmp_path, processor, grounded("one"))
    content = page("set", [item])
    assert "left:2.500%;top:8.333%;width:20.000%;height:25.000%" in content
    assert content.count('class="box"') == 2
    for name, value in (("text", item.counts.text), ("trained", item.counts.trained), ("visual", item.counts.visual)):
        assert f"<dt>{name}</dt><dd>{value:,}</dd>" in content
    assert "image 0 · 40 × 30 px" in content
    trained = re.findall(r'<span class="t on[^"]*"[^>]*>(.*?)</span>', content, re.S)
    assert "Two." in html.unescape("".join(trained))


def test_many_labels_stand_below_the_picture(tmp_path: Path, processor: Processor) -> None:
    values = grounded("one").to_dict()
    values["objects"][0]["boxes_px"] = [[n, n, n + 5, n + 5] for n in range(6)]
    (item,) = shown(tmp_path, processor, Record.from_dict(values))
    content = page("set", [item])
    label = values["objects"][0]["label"]
    assert 'class="picture many"' in content
    assert re.findall(r'<p class="key"><b style="[^"]+">(.*?)</b></p>', content) == [label]
    assert 'class="key"' not in page("set", shown(tmp_path / "few", processor, grounded("one")))


def test_the_same_seed_chooses_the_same_records_and_bad_ones_are_shown_as_such(
    tmp_path: Path, processor: Processor
) -> None:
    records = opened(tmp_path, *good_records(20), two_images("pair"))

    def names(seed: int) -> list[str]:
        items = choose(records, processor, count=5, seed=seed)
        return [item.record.id if isinstance(item, PreviewItem) else f"bad {item.id}" for item in items]

    assert names(1) == names(1) != names(2)
    everything = choose(records, processor, count=99, seed=0)
    assert [isinstance(item, Problem) for item in everything] == [False] * 20 + [True]
    assert '<article class="bad"><h2>' in page("t", everything)


def test_the_contact_sheet_is_a_picture_of_any_records(tmp_path: Path, processor: Processor) -> None:
    records = opened(tmp_path, *good_records(5), two_images("pair"), hostile("<x>"), text_only("long" * 50))
    items = choose(records, processor, count=9, seed=0)
    sheet = contact_sheet(items)
    assert sheet.width > sheet.height > 300
    assert contact_sheet(items).tobytes() == sheet.tobytes()
    assert contact_sheet([]).size[0] > 0
    out = io.BytesIO()
    sheet.save(out, "PNG")
    assert Image.open(io.BytesIO(out.getvalue())).size == sheet.size
