"""`vl2 quantize`, and the commands that use what it writes."""

from __future__ import annotations

import json

import pytest

from vl2.model.int8_cache import Int8Cache

from ..reference import CHECKPOINTS

TINY = CHECKPOINTS / "tiny"
ASK = ("ask", "Hello", "--max-new-tokens", "6", "--device", "cpu", "--json")


def test_a_quantized_folder_answers_like_quantizing_while_loading(vl2, tmp_path):
    out = tmp_path / "int4"
    ran = vl2("quantize", TINY, out)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{out}: 0.00 GB in int4, of ")
    from_files = vl2(*ASK, "-m", out)
    while_loading = vl2(*ASK, "-m", TINY, "--weights", "int4")
    assert (from_files.code, from_files.err) == (0, "")
    assert json.loads(from_files.out)["text"] == json.loads(while_loading.out)["text"]


def test_what_was_written_is_told_as_json(vl2, tmp_path):
    ran = vl2("quantize", TINY, tmp_path / "out", "--weights", "int8", "--json")
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(ran.out)
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert told["bytes"] == sum(file.stat().st_size for file in files)
    assert told["weights"] == "int8"
    assert told["bytes"] < told["source_bytes"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_cache_in_int8_is_chosen_by_its_flag(vl2, monkeypatch, dtype):
    made, allocate = [], Int8Cache.empty
    monkeypatch.setattr(Int8Cache, "empty", lambda *args, **kwargs: made.append(allocate(*args, **kwargs)) or made[-1])
    plain, int8 = (vl2(*ASK, "-m", TINY, "--dtype", dtype, *more) for more in ((), ("--cache", "int8")))
    assert (plain.code, int8.code, int8.err) == (0, 0, "")
    assert json.loads(int8.out)["usage"] == json.loads(plain.out)["usage"]
    assert [len(row.lengths) for row in made if row.layers == [] or row.layers[0][0].device.type == "cpu"] == [1]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("quantize", "no/such/folder", "OUT"), 1, "no folder no/such/folder"),
        (("quantize", TINY, "OUT", "--weights", "int3"), 2, "invalid choice 'int3'"),
        (("quantize", TINY), 2, "OUT is missing"),
        (("quantize", TINY, f"{__file__}/out"), 1, f"cannot write {__file__}/out: Not a directory"),
        (("ask", "hi", "-m", TINY, "--weights", "int3"), 1, "weights must be auto, int8 or int4, got int3"),
        (("ask", "hi", "-m", TINY, "--cache", "int4"), 1, "cache must be auto or int8, got int4"),
        (("serve", "-m", TINY, "--cache", "int4"), 1, "cache must be auto or int8, got int4"),
        (("bench", "-m", TINY, "--cache", "int4"), 1, "cache must be auto or int8, got int4"),
        (
            ("serve", "-m", TINY, "--engine", "vllm", "--cache", "int8"),
            1,
            "--cache int8 is for this package's engine: vLLM has a cache of its own",
        ),
        (
            ("ask", "hi", "-m", TINY, "--memory", "8"),
            1,
            "a size is a number with a unit, such as 8GB or 800MB, got '8'",
        ),
        (("ask", "hi", "-m", TINY, "--memory", "1MB"), 1, "and 0.00 GB are allowed"),
        (("ask", "hi", "-m", TINY, "--memory", "0GB"), 1, "memory must be above 0, got 0GB"),
        (("ask", "hi", "-m", TINY, "--temperature", "1", "--seed", str(2**64)), 1, "seed must be in -2^63..2^64-1"),
    ],
)
def test_faults_are_one_line(vl2, tmp_path, arguments, code, says):
    ran = vl2(*(tmp_path / "out" if a == "OUT" else a for a in arguments))
    assert ran.code == code
    assert says in ran.err
    assert ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_before_the_checkpoint_is_looked_up(vl2, tmp_path, nothing_loads):
    (tmp_path / "mine").write_text("mine")
    ran = vl2("quantize", "org/model", tmp_path)
    assert ran.code == 1
    assert ran.err == f"vl2: {tmp_path} exists: choose a new folder to save to\n"
