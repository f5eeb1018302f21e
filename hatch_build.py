"""Compiles the kernels while the package is built, if there is a C++ compiler; without one the wheel is pure Python.

`VL2_KERNELS=off` builds none. An editable install gets the one level that this processor runs best, a wheel all of
them: it may be installed elsewhere. A compiler that fails is told of and does not stop the installation.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import mac_platforms, platform_tags

KERNELS = Path("src") / "vl2" / "kernels"


class KernelsHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or os.environ.get("VL2_KERNELS") == "off":
            return
        kernels = _build_module(Path(self.root))
        compiler = kernels.find_compiler()
        if compiler is None or sys.platform not in ("linux", "darwin"):
            self.app.display_info("no C++ compiler here: vl2 is installed without its kernels")
            return
        folder = Path(self.root) / KERNELS / "lib"
        for stale in folder.glob("libvl2-*.so"):
            stale.unlink()
        levels = kernels.supported_levels()[:1] if version == "editable" else kernels.levels()
        for level in levels:
            try:
                kernels.build(level, folder, compiler)
            except (OSError, RuntimeError) as error:
                self.app.display_warning(f"vl2 is installed without its {level.name} kernels: {error}")
        if any(folder.glob("libvl2-*.so")):
            build_data["artifacts"].append(f"/{KERNELS.as_posix()}/lib/*.so")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform_tag()}"


def _platform_tag() -> str:
    """Return the tag of the machines that what the compiler makes here is for.

    It is never manylinux or musllinux, which some versions of packaging name first: whether a library keeps to those
    is for auditwheel to say.
    """
    target = os.environ.get("MACOSX_DEPLOYMENT_TARGET")  # clang reads it too
    if sys.platform == "darwin" and target:
        major, minor = [int(part) for part in f"{target}.0".split(".")[:2]]
        return next(mac_platforms((major, minor)))
    return next(tag for tag in platform_tags() if not tag.startswith(("manylinux", "musllinux")))


def _build_module(root: Path) -> ModuleType:
    """Return vl2/kernels/build.py without importing vl2, whose dependencies are not there yet."""
    spec = importlib.util.spec_from_file_location("vl2_kernels_build", root / KERNELS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
