"""Compile the kernels: one small library for each instruction level, in a few seconds each.

The package's build hook imports this file too, so it uses only the standard library. The file name of a library
contains a hash of the sources, so that a library built from other sources is never loaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
MAIN = "kernels.cpp"
COMPILERS = ("c++", "g++", "clang++")
COMMON_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-shared", "-pthread", "-Wno-psabi")
TIMEOUT_S = 300


@dataclass(frozen=True)
class Level:
    """An instruction level: the compiler flags for it, and the CPU flags that a processor must have."""

    name: str  # without a hyphen, which separates it from the hash in a library's name
    flags: tuple[str, ...]  # of the compiler
    needs: frozenset[str]  # names as in /proc/cpuinfo

    @property
    def has_bfloat16_products(self) -> bool:
        return bool(self.needs & {"avx512_bf16", "bf16"})

    @property
    def has_row_products(self) -> bool:
        """Whether the kernels multiply many rows by a weight in bfloat16 and in int8 (csrc/gemm.h)."""
        return bool(self.needs & {"avx512_bf16", "i8mm"})


_AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi2")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mavx512vnni")
_NEEDS_AVX512 = frozenset({"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni"})
X86_LEVELS = (
    Level(
        "amx",
        (*_AVX512, "-mprfchw", "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
        _NEEDS_AVX512 | {"amx_tile", "amx_bf16", "amx_int8"},
    ),
    Level("avx512", _AVX512, _NEEDS_AVX512),
    Level("avx2", _AVX2, frozenset({"avx2", "fma", "f16c", "bmi2"})),
)
# NEON is part of every 64-bit ARM processor. The flags name the architecture and not a processor: a library may be
# built on one machine and run on another. ARMv8.2 has the atomic instructions of ARMv8.1, so they are needed too.
_NEEDS_DOTPROD = frozenset({"asimddp", "atomics"})
ARM_LEVELS = (
    Level("neon_bf16", ("-march=armv8.2-a+dotprod+bf16+i8mm",), _NEEDS_DOTPROD | {"bf16", "i8mm"}),
    Level("neon_dotprod", ("-march=armv8.2-a+dotprod",), _NEEDS_DOTPROD),
    Level("neon", (), frozenset()),
)
PORTABLE = Level("portable", ("-DVL2_PORTABLE",), frozenset())
# What macOS calls the CPU flags of ARM_LEVELS.
MACOS_FLAGS = {"FEAT_DotProd": "asimddp", "FEAT_LSE": "atomics", "FEAT_BF16": "bf16", "FEAT_I8MM": "i8mm"}


def levels() -> tuple[Level, ...]:
    """Return the levels of this processor architecture, best first."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return (*X86_LEVELS, PORTABLE)
    return (*ARM_LEVELS, PORTABLE) if machine in ("aarch64", "arm64") else (PORTABLE,)


def supported_levels() -> tuple[Level, ...]:
    """Return the levels that this processor supports, best first."""
    flags = cpu_flags()
    return tuple(level for level in levels() if level.needs <= flags)


def cpu_flags() -> frozenset[str]:
    """Return the CPU flags by the names of /proc/cpuinfo; those of MACOS_FLAGS on macOS, none if they are not told."""
    if platform.system() == "Darwin":
        return _macos_flags()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    told = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(told, []))


def _macos_flags() -> frozenset[str]:
    command = ["/usr/sbin/sysctl", "hw.optional.arm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    told = (line.partition(": ") for line in done.stdout.splitlines())  # such as "hw.optional.arm.FEAT_BF16: 1"
    present = {name.rpartition(".")[2] for name, _, value in told if value.strip() == "1"}
    return frozenset(flag for name, flag in MACOS_FLAGS.items() if name in present)


def source_hash() -> str:
    """Return 16 hexadecimal digits that depend on all sources and compiler flags."""
    content = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        content.update(path.name.encode() + b"\0" + path.read_bytes())
    content.update(repr((COMMON_FLAGS, [level.flags for level in levels()])).encode())
    return content.hexdigest()[:16]


def file_name(level: Level) -> str:
    """Return the file name of a level's library, which contains the hash of its sources."""
    return f"libvl2-{level.name}-{source_hash()}.so"


def find_compiler() -> str | None:
    """Return the path of the C++ compiler in the environment variable CXX or of the first usual name found, or None."""
    named = os.environ.get("CXX")
    candidates = (named, *COMPILERS) if named else COMPILERS
    return next((found for name in candidates if (found := shutil.which(name))), None)


def build(level: Level, folder: Path, compiler: str) -> Path:
    """Compile one level into a folder and return the library's path.

    Raise RuntimeError with the compiler's message if it fails or takes longer than TIMEOUT_S.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / file_name(level)
    # Build a temporary file and rename it: two processes may build at once, and neither may load half a library.
    handle, scratch = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    try:
        command = [compiler, *COMMON_FLAGS, *level.flags, "-o", scratch, str(SOURCES / MAIN), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise RuntimeError(f"{compiler} could not build the kernels: {done.stderr.strip()[-2000:]}")
        Path(scratch).chmod(0o755)
        os.replace(scratch, target)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{compiler} took more than {TIMEOUT_S} s to build the kernels") from None
    finally:
        Path(scratch).unlink(missing_ok=True)
    return target
