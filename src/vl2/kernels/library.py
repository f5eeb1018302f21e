"""Find, build and load the kernels.

A library is searched for in the package, where the installation builds it, and then in the user's cache folder. If
neither has one that can be opened and there is a C++ compiler, it is built into the cache folder. `VL2_KERNELS=off`
disables the kernels; `VL2_KERNELS=amx`, `avx512`, `avx2`, `neon_bf16`, `neon_dotprod`, `neon` or `portable` selects an
instruction level. If a better level is supported by the processor but not available, one warning says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from vl2.errors import UserError
from vl2.kernels.build import Level, build, file_name, find_compiler, supported_levels
from vl2.kernels.structures import EncoderC, MatrixC, ModelC, PrefillChunkC, SamC, SamViewsC, StepC

LOGGER = logging.getLogger("vl2.kernels")
VARIABLE = "VL2_KERNELS"
BUILT = Path(__file__).parent / "lib"
NOT_EXECUTABLE = "failed to map segment"  # the loader's message for a file system that is mounted noexec
missed: dict[str, str] = {}  # levels that this processor supports but that could not be loaded, with the reason


class Library:
    """The loaded kernels of one level."""

    def __init__(self, path: Path, level: Level) -> None:
        self.path, self.level, self.has_bfloat16_products = path, level.name, level.has_bfloat16_products
        self.has_row_products = level.has_row_products
        loaded = ctypes.CDLL(str(path))
        if not loaded.vl2_is_supported():
            raise OSError(f"{path.name} needs instructions that this processor lacks")
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self.decode = _function(loaded, "vl2_decode", ctypes.POINTER(ModelC), ctypes.POINTER(StepC))
        self.prefill = _function(loaded, "vl2_prefill", ctypes.POINTER(ModelC), ctypes.POINTER(PrefillChunkC))
        self.prefill.restype = number
        self.encode = _function(loaded, "vl2_encode", ctypes.POINTER(EncoderC), pointer, *(number,) * 3)
        self.encode.restype = number
        self.encode_sam = _function(loaded, "vl2_encode_sam", ctypes.POINTER(SamC), ctypes.POINTER(SamViewsC), number)
        self.encode_sam.restype = number
        self.matmul = _function(
            loaded, "vl2_multiply", ctypes.POINTER(MatrixC), number, pointer, number, pointer, number
        )
        self.attend = _function(loaded, "vl2_attend", pointer, number)
        self.attend.restype = number
        self.attend_windows = _function(loaded, "vl2_attend_windows", pointer, number)
        self.attend_windows.restype = number
        self.experts = _function(loaded, "vl2_experts", pointer, number)
        self.experts.restype = number
        self.normalize = _function(
            loaded, "vl2_normalize", pointer, pointer, number, number, ctypes.c_double, pointer, number
        )
        self.layer_norm = _function(
            loaded, "vl2_layer_norm", *(pointer,) * 3, number, number, ctypes.c_double, pointer, number
        )
        self.activate = _function(loaded, "vl2_activate", pointer, *(number,) * 3)
        self.gelu_gradient = _function(loaded, "vl2_gelu_gradient", pointer, pointer, number, pointer, number)
        self.rotate = _function(loaded, "vl2_rotate", *(pointer,) * 3, *(number,) * 3, pointer, *(number,) * 3)
        self.swiglu_rows = _function(loaded, "vl2_swiglu_rows", pointer, *(number,) * 3, pointer, number)
        self.combine_experts = _function(
            loaded, "vl2_combine_experts", *(pointer,) * 3, number, number, number, *(pointer,) * 3, number
        )
        self.router_logits = _function(
            loaded, "vl2_router_logits", pointer, number, number, pointer, number, pointer, number
        )
        self.router_logits.restype = number
        self.topk = _function(loaded, "vl2_topk", pointer, number, number, number, pointer, number)
        self.sort_by_expert = _function(loaded, "vl2_sort_by_expert", pointer, number, number, number, *(pointer,) * 3)
        self.to_int8_rows = _function(loaded, "vl2_to_int8_rows", pointer, number, number, pointer, pointer, number)
        self.from_int32_sums = _function(
            loaded, "vl2_from_int32_sums", pointer, number, number, *(pointer,) * 3, number, pointer, pointer, number
        )
        self.multiply_many_rows = _function(loaded, "vl2_multiply_many_rows", pointer, number)
        self.multiply_many_rows.restype = number
        self.to_int4 = _function(
            loaded, "vl2_to_int4", pointer, number, number, number, pointer, number, pointer, pointer
        )
        self.from_int4 = _function(loaded, "vl2_from_int4", pointer, pointer, number, number, pointer, number)
        self.unpack_int4 = _function(loaded, "vl2_unpack_int4", pointer, pointer, number, number, pointer, number)
        self.unpack_int4.restype = number
        # Use PyTorch's OpenMP threads: two thread pools on the same cores would slow each other down.
        runtime = _openmp_runtime()
        self.shares_threads = runtime is not None and bool(loaded.vl2_use_openmp(str(runtime).encode()))


def load_kernels() -> Library | None:
    """Return the kernels for this machine, or None. The first call may compile them, which takes some seconds.

    Raise UserError if the environment variable VL2_KERNELS names no supported level.
    """
    return kernels_of_level(os.environ.get(VARIABLE, ""))


def describe_kernels() -> str:
    """Return one line that says which kernels are in use, and why better ones are not."""
    wanted, library = os.environ.get(VARIABLE, ""), load_kernels()
    said = f"none, as {VARIABLE} says" if wanted == "off" else library.level if library is not None else "none"
    return "; ".join([said, *(f"{level} could not be had: {why}" for level, why in missed.items())])


@cache
def kernels_of_level(wanted: str) -> Library | None:
    """Return the kernels of a level by name, or for "" those of the best available level; None if there are none.

    Raise UserError for a level that this processor does not support. Log a warning if a better level is not available.
    """
    if wanted == "off":
        return None
    supported = supported_levels()
    chosen = [level for level in supported if wanted in ("", level.name)]
    if not chosen:
        allowed = ", ".join(["off", *(level.name for level in supported)])
        raise UserError(f"{VARIABLE} must be one of {allowed} on this machine, got {wanted}")
    found = next((library for level in chosen if (library := _load(level)) is not None), None)
    lacking = [level.name for level in chosen if level.name in missed]
    if lacking:
        why = "; ".join(f"{name}: {missed[name]}" for name in lacking)
        instead = "PyTorch's own" if found is None else f"those of the level {found.level}"
        LOGGER.warning("vl2: slower than this machine allows: kernels are missing (%s), %s are used", why, instead)
    return found


def _load(level: Level) -> Library | None:
    found = next((library for path in _places(level) if (library := _opened(path, level)) is not None), None)
    if found is not None or NOT_EXECUTABLE in missed.get(level.name, ""):  # a build would not open either
        return found
    compiler = find_compiler()
    if compiler is None:
        missed[level.name] = "there is no C++ compiler"
        return None
    try:
        return _opened(build(level, cache_folder(), compiler), level)
    except (OSError, RuntimeError) as error:
        # The compiler may be too old for a level. Then the next level or plain PyTorch is used.
        missed[level.name] = next((line for line in str(error).splitlines() if "error" in line), str(error))
        return None


def _places(level: Level) -> Iterator[Path]:
    """Yield the existing library files of a level: in the package, then in the cache folder if the user has a home."""
    folders = [BUILT]
    with contextlib.suppress(RuntimeError):
        folders.append(cache_folder())
    for folder in folders:
        path = folder / file_name(level)
        if os.path.isfile(path):  # unlike Path.is_file it returns False where permission is denied
            yield path


def _opened(path: Path, level: Level) -> Library | None:
    try:
        found = Library(path, level)
    except OSError as error:
        missed[level.name] = str(error)
        return None
    missed.pop(level.name, None)
    return found


def cache_folder() -> Path:
    """Return the folder for compiled libraries. Raise RuntimeError if the user has no home folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "vl2" / "kernels"


def _function(loaded: ctypes.CDLL, name: str, *arguments: type) -> ctypes._NamedFuncPointer:
    function: ctypes._NamedFuncPointer = getattr(loaded, name)
    function.argtypes, function.restype = list(arguments), None
    return function


def _openmp_runtime() -> Path | None:
    """Return the path of the OpenMP runtime that PyTorch has loaded into this process, or None if it is not found."""
    torch.get_num_threads()
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    paths = {
        Path(line.split(maxsplit=5)[5]) for line in maps.splitlines() if re.search(r"lib[gi]?omp[-.\w]*\.so", line)
    }
    ours = [path for path in sorted(paths) if "torch" in path.parts]
    return next(iter(ours or sorted(paths)), None)
