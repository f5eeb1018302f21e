"""Paths as people type them: what no file can be called is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from vl2.errors import UserError
from vl2.files import is_url, local_path


def test_the_home_is_put_in_and_other_paths_stay(tmp_path: Path) -> None:
    assert local_path("~/x") == Path.home() / "x"
    assert local_path(tmp_path) == tmp_path
    assert local_path("no/such") == Path("no/such")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("~nobody-of-this-name/x", "~nobody-of-this-name/x: there is no home of that name"),
        ("x" * 300, f"{'x' * 60}... is no path here: "),
        ("x\0y", "embedded null"),
    ],
)
def test_what_is_no_path_is_one_short_line(typed: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        local_path(typed).exists() and local_path(typed).read_bytes()
    assert says in str(caught.value)


def test_urls_are_told_from_paths() -> None:
    assert all(map(is_url, ("data:image/png;base64,x", "HTTPS://x", "http://x", "file:///x")))
    assert not any(map(is_url, ("database.png", "~/x", "C:\\x", "httpx/x.png")))
