"""Draw random formulas with matplotlib (extra `data`), and ask for their LaTeX code.

A small grammar makes the formulas. It uses only LaTeX that matplotlib's typesetter supports, so that image and code
always agree.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from vl2.errors import UserError
from vl2.optional_imports import install_extra
from vl2.synth.distort import distort
from vl2.synth.draft import Draft
from vl2.synth.source import Source

WRITE = {
    "en": (
        "Write the formula in LaTeX.",
        "Convert the formula in the image to LaTeX.",
        "What is the LaTeX code of this formula?",
        "Transcribe this equation as LaTeX.",
    ),
    "zh": ("请把图中的公式写成LaTeX。", "将图片中的公式转换为LaTeX代码。", "这个公式的LaTeX是什么？"),
}
GREEK = (r"\alpha", r"\beta", r"\theta", r"\lambda", r"\mu", r"\pi", r"\phi")
VARIABLES = ("x", "y", "z", "a", "b", "n", "k", "t", *GREEK)
SERIES = (r"\sum", r"\prod")
INFINITY = r"\infty"
FUNCTIONS = (r"\sin", r"\cos", r"\tan", r"\log", r"\exp", r"\ln")
RELATIONS = ("=", r"\leq", r"\geq", r"\neq", r"\approx", r"\equiv", r"\to")
OPERATORS = ("+", "-", r"\cdot", r"\times", r"\pm")
FONT_SETS = ("dejavusans", "dejavuserif", "cm", "stix", "stixsans")
INKS = ("#000000", "#1a1a5e", "#333333", "#4a1c1c")
PAPERS = ("#ffffff", "#fffdf4", "#f2f2f2", "#eef4ff")


@dataclass(frozen=True, kw_only=True)
class Formula(Source):
    """OCR of one formula. `depth` bounds how far expressions nest."""

    name = "formula"
    category = "ocr"
    tasks_known: ClassVar[tuple[str, ...]] = ("expression", "equation")

    depth: int = 2
    max_distortions: int = 2
    languages: tuple[str, ...] = ("en", "zh")

    def draft(self, rng: random.Random) -> Draft:
        task, language = self.pick_task(rng), rng.choice(self.languages)
        latex = expression(rng, self.depth)
        if task == "equation":
            latex = f"{latex} {rng.choice(RELATIONS)} {expression(rng, max(0, self.depth - 1))}"
        font, size_pt = rng.choice(FONT_SETS), rng.randint(16, 34)
        image = draw_formula(latex, font=font, size_pt=size_pt, ink=rng.choice(INKS), paper=rng.choice(PAPERS))
        picture = distort(image, rng, rng.randint(0, self.max_distortions))
        traits = {"task": task, "font": font, "text_px": str(size_pt), "distortion": "+".join(picture.names)}
        draft = Draft(language=language, traits=traits)
        draft.picture(picture.image, jpeg_quality=picture.jpeg_quality)
        draft.ask(rng.choice(WRITE[language]), f"${latex}$")
        return draft


def expression(rng: random.Random, depth: int) -> str:
    """Return a random expression in LaTeX, nested at most `depth` times."""
    if depth <= 0:
        return _atom(rng)
    kind = rng.choice(("sum", "fraction", "root", "function", "power", "series", "integral", "limit", "brackets"))
    inner, other = expression(rng, depth - 1), expression(rng, depth - 1)
    variable = rng.choice(VARIABLES)
    return {
        "sum": f"{inner} {rng.choice(OPERATORS)} {other}",
        "fraction": rf"\frac{{{inner}}}{{{other}}}",
        "root": rf"\sqrt{{{inner}}}",
        "function": rf"{rng.choice(FUNCTIONS)} \left( {inner} \right)",
        "power": rf"\left( {inner} \right)^{{{_atom(rng)}}}",
        "series": rf"{rng.choice(SERIES)}_{{k = {rng.randint(0, 3)}}}^{{n}} {inner}",
        "integral": rf"\int_{{{rng.randint(0, 3)}}}^{{{rng.choice((INFINITY, 'n', 'a'))}}} {inner} \, d{variable}",
        "limit": rf"\lim_{{{variable} \to {rng.choice(('0', INFINITY))}}} {inner}",
        "brackets": rf"\left[ {inner} {rng.choice(OPERATORS)} {other} \right]",
    }[kind]


def _atom(rng: random.Random) -> str:
    variable = rng.choice(VARIABLES)
    number = rng.choice((str(rng.randint(2, 99)), f"{rng.randint(0, 9)}.{rng.randint(1, 99)}"))
    return rng.choice(
        (variable, number, f"{variable}^{{{rng.randint(2, 9)}}}", f"{variable}_{{{rng.randint(0, 9)}}}",
         f"{rng.randint(2, 9)} {variable}")
    )  # fmt: skip


def draw_formula(latex: str, *, font: str, size_pt: int, ink: str, paper: str) -> Image.Image:
    """Return an image of a formula with a margin of half the font size.

    `ink` and `paper` are colors such as "#1a1a5e". Raise UserError if matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(f"drawing formulas needs matplotlib: {install_extra('data')}") from None
    with matplotlib.rc_context({"mathtext.fontset": font}):
        figure = Figure(facecolor=paper, dpi=100)
        FigureCanvasAgg(figure)
        figure.text(0, 0, f"${latex}$", fontsize=size_pt, color=ink)
        out = io.BytesIO()
        margin_in = size_pt / 72 / 2
        figure.savefig(out, format="png", bbox_inches="tight", pad_inches=margin_in, facecolor=paper)
    return Image.open(out).convert("RGB")
