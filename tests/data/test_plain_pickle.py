"""Pickles as plain data: the real thing is read, and nothing that calls, grows or loops gets through."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest

from vl2.data import plain_pickle
from vl2.data.plain_pickle import read_plain_pickle
from vl2.errors import UserError

REFS = [
    {
        "ref_id": 1,
        "ann_id": 1719310,
        "category_id": 1,
        "split": "train",
        "sentences": [{"tokens": ["the", "bröwn", "dog"], "sent_id": 0, "raw": "The bröwn dog", "sent": "bröwn dog"}],
        "sent_ids": (0,),
        "score": -0.25,
        "big": 2**70,
        "valid": True,
        "note": None,
    }
] * 3


def written(folder: Path, data: bytes) -> Path:
    path = folder / "refs(unc).p"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    expected = [{**ref, "sent_ids": [0]} for ref in REFS]
    assert read_plain_pickle(written(tmp_path, pickle.dumps(REFS, protocol))) == expected


def test_texts_of_python_2(tmp_path: Path) -> None:
    # What Python 2 writes for {"sent": "left one"}: S and U are its byte strings, which Python 3 no longer writes.
    assert read_plain_pickle(written(tmp_path, b"(dp0\nS'sent'\np1\nS'left one'\np2\ns.")) == {"sent": "left one"}
    assert read_plain_pickle(written(tmp_path, b"\x80\x02}q\x00U\x04sentq\x01U\x08left oneq\x02s.")) == {
        "sent": "left one"
    }


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Nested(Calls):
    def __reduce__(self) -> Any:
        return (list, ([Calls(os.system, "touch ran")],))


class WithState:
    def __setstate__(self, state: Any) -> None:
        os.system("touch ran")

    def __getstate__(self) -> Any:
        return {"a": 1}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "hostile",
    [
        Calls(os.system, "touch ran"),
        [{"ref_id": Calls(eval, "open('ran', 'w')")}],
        Nested(None),
        WithState(),
        [{"ref_id": 1, "x": bytearray(b"a")}],
        {1, 2},
        b"bytes",
        complex(1, 2),
        os.path.join,
    ],
    ids=["os.system", "eval inside", "nested", "state", "bytearray", "set", "bytes", "complex", "function"],
)
def test_whatever_names_or_makes_something_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: Any, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^refs\(unc\).p is refused: it is a pickle that is not plain data") as raised:
        read_plain_pickle(written(tmp_path, pickle.dumps(hostile, protocol)))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "instructions",
    [
        b"cos\nsystem\n(S'touch ran'\ntR.",  # GLOBAL and REDUCE
        b"(S'touch ran'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch ran'\no.",  # OBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R.",  # STACK_GLOBAL
        b"\x80\x02\x82\x01.",  # EXT1: a name from a table
        b"Pname\n.",  # PERSID: an object elsewhere
        b"\x80\x02}}b.",  # BUILD
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"(lp0\ncos\nsystem\n0.",  # a name that is dropped at once
    ],
)
def test_instructions_by_hand_are_refused_before_the_first_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instructions: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="not plain data, with "):
        read_plain_pickle(written(tmp_path, instructions))
    assert not (tmp_path / "ran").exists()


def test_a_name_in_the_error_is_the_one_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"with GLOBAL \('os system'\) at byte 0"):
        read_plain_pickle(written(tmp_path, b"cos\nsystem\n(S'touch ran'\ntR."))


def billion_laughs() -> bytes:
    # Each list holds the one before it twice: 40 levels are 2^40 values from 200 bytes.
    data = b"]q\x00"
    for level in range(40):
        data += b"]q" + bytes([level + 1]) + b"(h" + bytes([level]) + b"h" + bytes([level]) + b"e"
    return b"\x80\x02" + data + b"."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (billion_laughs(), "refers to itself, or is far larger than the file"),
        (b"\x80\x02]q\x00h\x00a.", "refers to itself"),  # a list that holds itself
        (b"\x80\x02" + b"]" * 500 + b"a" * 499 + b".", "refers to itself, or is far larger"),  # 500 levels deep
        (b"\x80\x02](X\x10\x27\x00\x00" + b"x" * 10_000 + b"q\x00" + b"h\x00" * 500_000 + b"e.", "far larger"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "is a damaged pickle: LONG_BINPUT 2147483647"),  # a table of 16 GB
        (b"p999999999\n.", "damaged"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.", "is not a pickle, or is damaged"),  # 1 TB of text
        (b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"1.", "is not a pickle, or is damaged"),  # a number of 2 GB
        (b"L" + b"9" * 100_000 + b"L\n.", "is not a pickle, or is damaged"),  # digits
        (b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.", "damaged"),  # a frame of 1 TB
        (b"Fnan\n.", "not finite"),
        (b"", "is not a pickle"),
        (b"[1, 2]", "is not a pickle"),
        (b"\x80\x02}K\x01K\x02s.", "the keys of its objects must be texts"),
        (b"\x80\x02ta.", "is a damaged pickle"),
        (pickle.dumps(REFS)[:-20], "damaged"),
    ],
)
def test_bombs_and_damage_are_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read_plain_pickle(written(tmp_path, data))
    assert "\n" not in str(raised.value)


def test_a_file_over_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_pickle, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="a pickle may have 10"):
        read_plain_pickle(written(tmp_path, pickle.dumps(REFS)))
