"""The kernels for ARM, compiled by a cross compiler and run in an emulator: every level against double precision.

The programs arm_program.cpp and arm_model_program.cpp hold the checks. The first also runs for the portable level,
which shows that its checks hold nothing that only NEON fulfills.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vl2.kernels import build
from vl2.kernels.build import ARM_LEVELS, COMMON_FLAGS, MACOS_FLAGS, MAIN, PORTABLE, SOURCES, Level, supported_levels

PROGRAM, MODEL_PROGRAM = (Path(__file__).with_name(name) for name in ("arm_program.cpp", "arm_model_program.cpp"))
COMPILER = shutil.which("aarch64-linux-gnu-g++")
DISASSEMBLER = shutil.which("aarch64-linux-gnu-objdump")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
LIBRARIES = "/usr/aarch64-linux-gnu"
needs_tools = pytest.mark.skipif(
    COMPILER is None or DISASSEMBLER is None or EMULATOR is None, reason="needs a cross compiler and qemu"
)
# For each level a processor that has it and no better one.
PROCESSORS = {"neon_bf16": "max", "neon_dotprod": "neoverse-n1", "neon": "cortex-a72", "portable": "cortex-a72"}
LEVELS = (*ARM_LEVELS, PORTABLE)
TIMEOUT_S = 600


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)


def build_and_run(program: Path, level: Level, folder: Path) -> str:
    """Return what a program of a level prints in the emulator."""
    made = folder / "program"
    # With -O1, which compiles faster. The flags of a wheel are those of the test of inner loops below.
    flags = [flag for flag in COMMON_FLAGS if flag not in ("-fPIC", "-shared", "-O3")]
    assert COMPILER is not None
    assert EMULATOR is not None
    done = run(COMPILER, *flags, "-O1", *level.flags, "-I", str(SOURCES), "-o", str(made), str(program), "-ldl")
    assert done.returncode == 0, done.stderr[-2000:]
    done = run(EMULATOR, "-L", LIBRARIES, "-cpu", PROCESSORS[level.name], str(made))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_tools
@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_every_kernel_is_as_exact_as_it_says_and_a_row_has_the_same_bits_in_every_batch(
    level: Level, tmp_path: Path
) -> None:
    said = build_and_run(PROGRAM, level, tmp_path)
    found = re.fullmatch(r"(\d+) checks, 0 failures\n", said)
    assert found is not None, said
    assert int(found[1]) > 50_000


@needs_tools
@pytest.mark.slow
@pytest.mark.parametrize("level", ARM_LEVELS, ids=lambda level: level.name)
def test_a_model_decodes_alike_alone_and_in_a_batch_and_reads_a_prompt_as_it_decodes(
    level: Level, tmp_path: Path
) -> None:
    assert build_and_run(MODEL_PROGRAM, level, tmp_path).endswith("0 failures\n")


@needs_tools
@pytest.mark.slow
@pytest.mark.parametrize("level", ARM_LEVELS[:2], ids=lambda level: level.name)
def test_a_processor_without_the_instructions_is_refused(
    level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, program = tmp_path / "support.cpp", tmp_path / "support"
    source.write_text('#include "instruction_set.h"\nint main() { return vl2::is_supported(); }\n')
    assert COMPILER is not None
    assert EMULATOR is not None
    done = run(COMPILER, "-std=c++17", *level.flags, "-I", str(SOURCES), "-o", str(program), str(source))
    assert done.returncode == 0, done.stderr
    for processor, is_supported in ((PROCESSORS[level.name], 1), ("cortex-a72", 0)):
        assert run(EMULATOR, "-L", LIBRARIES, "-cpu", processor, str(program)).returncode == is_supported


# For each product: the instruction that multiplies, and the weights of one row of activations that it takes.
LOOPS = [
    ("neon_bf16", "multiply_bf16", "bfmmla", 8),  # four inputs of two rows of weights; half of its results are not used
    (
        "neon_bf16",
        "multiply_int8",
        "smmla",
        16,
    ),  # eight inputs of two rows of weights, with two bytes an activation
    ("neon_bf16", "multiply_int4", "smmla", 16),
    ("neon_dotprod", "multiply_bf16", "fmla", 4),
    ("neon_dotprod", "multiply_int8", "sdot", 8),  # sixteen inputs, with one of two bytes
    ("neon_dotprod", "multiply_int4", "sdot", 8),
    ("neon", "multiply_bf16", "fmla", 4),
    ("neon", "multiply_int8", "fmla", 4),
    ("neon", "multiply_int4", "smlal", 8),  # counted with as many of smlal2
]


@needs_tools
@pytest.mark.parametrize(("level_name", "product", "multiplies", "weights"), LOOPS)
def test_the_inner_loop_of_a_product_is_not_scalar(
    level_name: str, product: str, multiplies: str, weights: int, tmp_path: Path
) -> None:
    """A scalar loop takes at least three instructions for each weight: two loads and a multiply-add.

    There is a loop for each number of rows. The one for one row takes the most instructions for each product.
    """
    source, made = tmp_path / "product.cpp", tmp_path / "product.o"
    source.write_text(
        '#include "matmul.h"\n'
        "void product(const vl2::Matrix& w, int rows, const vl2::bf16* const* x, float* const* out) {\n"
        f"    vl2::{product}(w, 0, w.outputs, rows, x, out);\n}}\n"
    )
    level = next(level for level in ARM_LEVELS if level.name == level_name)
    assert COMPILER is not None
    assert DISASSEMBLER is not None
    done = run(COMPILER, *COMMON_FLAGS, *level.flags, "-I", str(SOURCES), "-c", "-o", str(made), str(source))
    assert done.returncode == 0, done.stderr[-2000:]
    loops = inner_loops(run(DISASSEMBLER, "-d", "--no-show-raw-insn", str(made)).stdout)
    per_product = [len(loop) / (loop.count(multiplies) * weights) for loop in loops if multiplies in loop]
    assert per_product, f"no loop has {multiplies}"
    assert max(per_product) < 1.5


def inner_loops(disassembly: str) -> list[list[str]]:
    """Return the names of the instructions of each loop that holds no other loop."""
    loops = []
    for function in disassembly.split("\n\n"):
        found = re.findall(r"^\s*([0-9a-f]+):\s+(\S+)(.*)$", function, re.MULTILINE)
        index = {address: i for i, (address, _, _) in enumerate(found)}
        jumps = [(index.get(to[1]), i) for i, (_, _, rest) in enumerate(found) if (to := BRANCH.search(rest))]
        backward = [(first, last) for first, last in jumps if first is not None and first < last]
        for first, last in backward:
            inside = [other for other in backward if first <= other[0] and other[1] <= last]
            if inside == [(first, last)]:
                loops.append([name for _, name, _ in found[first : last + 1]])
    return loops


BRANCH = re.compile(r"\b([0-9a-f]+) <")  # the target of a branch, such as "b.lt 1a4 <product+0x60>"


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("aarch64", {"asimd"}, ["neon", "portable"]),
        ("aarch64", {"asimd", "asimddp", "atomics"}, ["neon_dotprod", "neon", "portable"]),
        ("arm64", {"asimddp", "atomics", "bf16", "i8mm"}, ["neon_bf16", "neon_dotprod", "neon", "portable"]),
        ("arm64", {"asimddp", "atomics", "bf16"}, ["neon_dotprod", "neon", "portable"]),
        ("armv7l", {"neon"}, ["portable"]),
    ],
)
def test_the_levels_of_a_processor_follow_its_flags(
    machine: str, flags: set[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(build, "cpu_flags", lambda: frozenset(flags))
    assert [level.name for level in supported_levels()] == expected


def test_macos_names_its_flags_by_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"FEAT_DotProd": 1, "FEAT_LSE": 1, "FEAT_BF16": 0, "caps": 867}
    told = "".join(f"hw.optional.arm.{name}: {value}\n" for name, value in values.items())
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=told, stderr=""))
    assert build.cpu_flags() == {"asimddp", "atomics"}

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("sysctl")

    monkeypatch.setattr(subprocess, "run", missing)
    assert build.cpu_flags() == frozenset()
    assert set(MACOS_FLAGS.values()) == set().union(*(level.needs for level in ARM_LEVELS))


def test_every_source_of_the_kernels_is_included() -> None:
    """A header that nothing includes is not compiled, so nobody would see that it is wrong."""
    headers = {path.name for path in SOURCES.glob("*.h")}
    named = {name for path in SOURCES.iterdir() for name in re.findall(r'#include "([^"]+)"', path.read_text())}
    assert headers == named
    assert (SOURCES / MAIN).is_file()
