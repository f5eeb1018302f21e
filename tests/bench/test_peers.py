"""A peer says in its name how it is configured: no ratio is told without that."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

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
