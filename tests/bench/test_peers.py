"""A peer says in its name how it is configured: no ratio is told without that."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from vl2.bench.protocol import PAGE_PROMPT, PAGE_TOKENS, Unsupported, check_page_tokens
from vl2.config import preset
from vl2.grid import UNTILED
from vl2.infer.prompts import read_prompt

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


def adapter(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"peer_{name}", PEERS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("compiled", "preloaded", "said"),
    [
        (False, None, "eager, without tcmalloc and iomp5"),
        (True, None, "compiled, without tcmalloc and iomp5"),
        (True, "/usr/lib/libtcmalloc_minimal.so.4:/venv/lib/libiomp5.so", "compiled, with tcmalloc and iomp5"),
        (False, "/usr/lib/libtcmalloc_minimal.so.4", "eager, with tcmalloc, without iomp5"),
    ],
)
def test_vllm_says_whether_it_is_compiled_and_has_what_its_manual_advises(
    compiled: bool, preloaded: str | None, said: str
) -> None:
    environment = {} if preloaded is None else {"LD_PRELOAD": preloaded}
    assert adapter("vllm_cpu").configuration(compiled, environment) == said


# What llama.cpp prints of a native build and of a build for AVX2, shortened to what is read.
NATIVE = (
    "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | FMA = 1 | AVX512 = 1 | AVX512_VNNI = 1 | AVX512_BF16 = 1 | REPACK = 1 | "
)
AVX2 = "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | FMA = 1 | REPACK = 1 | "


@pytest.mark.parametrize(
    ("info", "flags", "said"),
    [
        (NATIVE, "sse3 avx avx2 fma avx512f avx512_vnni avx512_bf16", "native build"),
        (AVX2, "sse3 avx avx2 fma", "native build"),
        (AVX2, "avx avx2 fma avx512f avx512_vnni", "build without AVX512, AVX512_VNNI"),
        ("CPU : SSE3 = 1 | AVX = 0 | AVX2 = 0 | ", "avx avx2", "build without AVX2"),
        ("AVX2 = 1 | FMA = 1 | ", "avx2 fma amx_int8", "build without AMX_INT8"),
        (AVX2, "", "build for an unknown processor"),
    ],
)
def test_llama_cpp_says_whether_it_was_built_for_this_processor(info: str, flags: str, said: str) -> None:
    assert adapter("llama_text").build_of(info, set(flags.split())) == said


@pytest.mark.parametrize(
    ("are_images", "kept"),
    [([False, True, True, True, False], [0, 3, 4]), ([False, True, False], [0, 1, 2])],
)
def test_llama_cpp_reads_a_page_without_its_crops(are_images: list[bool], kept: list[int]) -> None:
    """The crops come before the view of the whole page, row by row."""
    assert adapter("llama_page").without_crops(are_images) == kept


@pytest.mark.parametrize(("name", "is_reader"), [("deepseek-ocr", True), ("tiny", False)])
def test_vllm_tells_deepseek_ocr_from_deepseek_vl2(name: str, is_reader: bool) -> None:
    assert adapter("vllm_cpu").is_page_reader(preset(name).to_dict()) == is_reader


def test_peers_get_the_prompt_of_a_page_that_vl2_gets() -> None:
    config = preset("deepseek-ocr")
    side = config.tokens_per_side
    assert config.layout(side, side).num_tokens(UNTILED) == PAGE_TOKENS
    assert read_prompt("DeepSeek-OCR") == PAGE_PROMPT
    check_page_tokens(PAGE_TOKENS)
    with pytest.raises(Unsupported, match="273 tokens in mode base, and 694 here"):
        check_page_tokens(694)


TABLE = """
|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
|    32 |     24 |    4 |    224 |    0.324 |   395.25 |    0.802 |   119.66 |    1.126 |   198.91 |
"""


def test_the_seconds_of_llama_cpp_are_read_from_the_table_that_it_prints() -> None:
    timings = adapter("llama_programs").timings
    assert timings(f"loading ...{TABLE}llama_print_timings: load time = 5 ms") == (0.324, 0.802)
    with pytest.raises(RuntimeError, match="one row of timings, it printed 0"):
        timings("n_ctx_req = 4096 is greater than n_kv_max = 2048")


def test_every_ratio_to_vllm_in_the_guides_says_eager_or_compiled() -> None:
    """Heads of tables are where such a ratio stands."""
    docs = PEERS.parents[1] / "docs"
    heads = [
        cell.strip()
        for page in docs.rglob("*.md")
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
        for cell in line.split("|")
        if "vLLM" in cell and ("takes" in cell or "times ours" in cell or "beside" in cell or cell.strip() == "vLLM")
    ]
    assert heads
    assert [head for head in heads if "eager" not in head and "compiled" not in head] == []
