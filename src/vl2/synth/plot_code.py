"""Make records of plots with their matplotlib code. Scripts are generated, or read from a folder.

Each script runs in the sandbox, and the record has the image that it draws. A script that fails, exceeds its limits or
draws nothing is dropped.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from PIL import Image

from vl2.errors import UserError
from vl2.optional_imports import install_extra
from vl2.synth import plot_scripts
from vl2.synth.draft import Draft
from vl2.synth.sandbox import Limits, run_script
from vl2.synth.source import Dropped, Source

PICTURE = "plot.png"
MAX_SIDE_PX = 2048
ASK = {
    "en": (
        "Write Python code that draws this plot.",
        "Which matplotlib code makes this figure?",
        "Please reproduce this chart with matplotlib.",
        "Convert this plot to Python code.",
        "Give a Python script that generates the picture.",
    ),
    "zh": ("请写出绘制这张图的Python代码。", "用matplotlib重现这张图。", "把这张图转换成Python代码。"),
}
# This code is appended to the script and saves its current figure. It is not part of the answer.
_EPILOGUE = f"""
import matplotlib.pyplot as _plt
assert _plt.get_fignums(), "the script draws nothing"
_plt.gcf().savefig("{PICTURE}", dpi=min(100, {MAX_SIDE_PX} / max(_plt.gcf().get_size_inches())))
"""


@dataclass(frozen=True, kw_only=True)
class PlotCode(Source):
    """Pictures of plots with the code that drew them."""

    name = "plot_code"
    category = "plot_to_code"
    tasks_known: ClassVar[tuple[str, ...]] = plot_scripts.KINDS

    scripts: str | None = None  # folder of .py files to run; None generates random scripts
    limits: Limits = field(default_factory=Limits)

    def draft(self, rng: random.Random) -> Draft:
        kind, code = "file", ""
        if self.scripts is None:
            kind = self.pick_task(rng)
            code = plot_scripts.write_script(kind, rng)
        else:
            code = rng.choice(read_scripts(self.scripts))
        language = "zh" if rng.random() < 0.3 else "en"
        draft = Draft(language=language, traits={"kind": kind})
        draft.picture(draw(code, self.limits))
        draft.ask(rng.choice(ASK[language]), f"```python\n{code.strip()}\n```")
        return draft


@lru_cache(maxsize=4)
def read_scripts(folder: str) -> tuple[str, ...]:
    """Return the contents of the Python files in a folder and its subfolders, sorted by path.

    Raise UserError if there are none.
    """
    files = sorted(Path(folder).rglob("*.py"))
    if not files:
        raise UserError(f"{folder} holds no .py file")
    return tuple(file.read_text(encoding="utf-8", errors="replace") for file in files)


def draw(code: str, limits: Limits) -> Image.Image:
    """Run plotting code in the sandbox and return its image. Raise Dropped if it fails or the image is blank."""
    ran = run_script(
        code + _EPILOGUE, limits=limits, wanted=(PICTURE,), warm=("matplotlib.pyplot",), given=_font_list()
    )
    if ran.outcome != "ok":
        raise Dropped(f"plot code: {ran.outcome}")
    if PICTURE not in ran.files:
        raise Dropped("plot code: no picture")
    try:
        image = Image.open(io.BytesIO(ran.files[PICTURE])).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        raise Dropped("plot code: broken picture") from None
    if len(image.getcolors(image.width * image.height) or ()) == 1:
        raise Dropped("plot code: blank picture")
    return image


@lru_cache(maxsize=1)
def _font_list() -> dict[str, bytes]:
    """Return matplotlib's font cache by file name. Without it every run would search for fonts for seconds."""
    try:
        import matplotlib
        import matplotlib.font_manager  # makes the list if there is none
    except ImportError:
        raise UserError(f"drawing plots needs matplotlib: {install_extra('data')}") from None
    return {file.name: file.read_bytes() for file in sorted(Path(matplotlib.get_cachedir()).glob("fontlist-*.json"))}
