"""Bodies without their data URLs are the bodies that were sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl2.serve import json_body
from vl2.serve.api_errors import ApiError
from vl2.serve.json_body import BodyParser

LONG = "data:image/png;base64," + "QUJD/+12" * 5
TEXTS = st.sampled_from(
    (LONG, LONG.upper(), LONG + "\\", LONG + "\u00e9", LONG + '"', f'say "{LONG}" now', f'"{LONG}', "data:", "data:,x",
     '"data:', "\\", '\\"data:' + "A" * 50, "short", "\n", "x" * 50)
) | st.text(max_size=5)  # fmt: skip
VALUES = st.recursive(
    TEXTS | st.integers(-5, 5) | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=12,
)


@pytest.fixture(autouse=True, scope="module")
def short_texts_are_long() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_body, "MIN_CUT", 20)
        patch.setattr(json_body, "CHUNK_BYTES", 10)
        yield


def parse(body: bytes, **limits: int) -> Any:
    parser = BodyParser(**{"max_depth": 32, "max_json_bytes": 1 << 20, "max_context": 4096, **limits})
    return parser._parse_large(body)


@given(value=VALUES, ascii_only=st.booleans(), slashes=st.booleans(), indent=st.sampled_from((None, 1)))
@settings(deadline=None)
def test_a_body_is_read_as_it_would_be_whole(value: Any, ascii_only: bool, slashes: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    body = (text.replace("/", "\\/") if slashes else text).encode("utf-8", "replace")
    assert parse(body) == json.loads(body)


@given(body=st.lists(st.sampled_from((b'"', b'"data:', b"A" * 50, b"\\", b"{", b"}", b"[", b"]", b":", b",", b" ")),
                     max_size=12).map(b"".join))  # fmt: skip
@settings(deadline=None, max_examples=500)
def test_what_is_no_json_is_none_without_its_data_urls(body: bytes) -> None:
    try:
        expected = json.loads(body)
    except ValueError:
        with pytest.raises(ApiError):
            parse(body)
    else:
        assert parse(body) == expected


def test_a_data_url_is_not_counted_and_other_text_is() -> None:
    limit = {"max_json_bytes": 10_000}
    assert parse(json.dumps({"a": [LONG * 1000, LONG]}).encode(), **limit) == {"a": [LONG * 1000, LONG]}
    for text in ("x" * 20_000, "data:" + "\n" * 10_000, "DATA:" + "x" * 20_000, "data:" + "\u00e9" * 10_000):
        with pytest.raises(ApiError, match="bytes besides its data URLs; the limit is 10000") as caught:
            parse(json.dumps({"a": text}).encode(), **limit)
        assert (caught.value.status_code, caught.value.code) == (400, "context_length_exceeded")


@pytest.mark.parametrize("body", [{LONG: 1}, [{"a": {LONG: LONG}}]])
def test_a_data_url_cannot_be_the_name_of_a_field(body: object) -> None:
    with pytest.raises(ApiError, match="as the name of a field"):
        parse(json.dumps(body).encode())
    with pytest.raises(ApiError, match="given twice"):
        parse(b'{"a": "%s", "a": 1}' % LONG.encode())


def test_large_bodies_are_parsed_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def note(body: bytes, max_depth: int) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            threads.append(True)
        else:
            threads.append(False)
        return json.loads(body)

    monkeypatch.setattr(json_body, "parse_json", note)
    parser = BodyParser(max_depth=32, max_json_bytes=1 << 20, max_context=4096)
    for text in ("x", "x" * 500_000, LONG * 10_000):
        assert asyncio.run(parser.parse(json.dumps(text).encode())) == text
    assert threads == [False, True, True]
