"""Check that wheels have the kernels that their platform tags promise, and the package's data files.

    python tools/check_wheels.py dist/*.whl

Building goes on without kernels where a compiler fails; a wheel for others must not.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

KERNELS = {
    "x86_64": {"amx", "avx512", "avx2", "portable"},
    "aarch64": {"neon_bf16", "neon_dotprod", "neon", "portable"},
    "arm64": {"neon_bf16", "neon_dotprod", "neon", "portable"},
    "any": set[str](),
}
LIBRARY = "vl2/kernels/lib/libvl2-"
DATA = {
    "vl2/py.typed",
    "vl2/kernels/csrc/kernels.cpp",
    "vl2/nano/model.safetensors",
    "vl2/nano/tokenizer.json",
    "vl2/presets/processor_config.json",
    "vl2/serve/web/static/index.html",
    "vl2/serve/web/static/markdown-it.umd.min.js",
}


def find_faults(wheel: Path) -> list[str]:
    """Return what is wrong with a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    python, abi, platform = wheel.stem.split("-")[-3:]
    wanted = next((levels for machine, levels in KERNELS.items() if platform.endswith(machine)), None)
    if wanted is None:
        return [f"the platform {platform} is not known here"]
    kernels = [name.removeprefix(LIBRARY).partition("-")[0] for name in names if name.startswith(LIBRARY)]
    faults = []
    if (python, abi) != ("py3", "none"):
        faults.append(f"the tag is {python}-{abi}, and py3-none is wanted")
    if platform.startswith("linux"):
        faults.append(f"the platform is {platform}: auditwheel has not repaired it")
    if sorted(kernels) != sorted(wanted):
        faults.append(f"it has kernels for {sorted(kernels)}, and {sorted(wanted)} are wanted")
    return faults + [f"{name} is missing" for name in sorted(DATA - set(names))]


def main(wheels: list[Path]) -> None:
    faults = [f"{wheel.name}: {fault}" for wheel in wheels for fault in find_faults(wheel)]
    if not wheels:
        sys.exit("no wheels are named")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
