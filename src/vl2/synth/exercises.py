"""Make exercises as in first-year college textbooks: a question, its figure, worked steps and the answer.

Every answer is computed, as an integer or an exact fraction. The texts are in English or Chinese.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from PIL import Image, ImageDraw

from vl2.synth import fonts

INK = (30, 30, 40)
# Pairs of resistances whose parallel resistance is an integer.
PARALLEL = ((3, 6), (4, 12), (6, 12), (10, 15), (10, 40), (12, 24), (15, 30), (20, 30), (20, 80), (30, 60))
MASSES = {"H": 1, "C": 12, "N": 14, "O": 16, "Na": 23, "Mg": 24, "S": 32, "Ca": 40}
COMPOUNDS: tuple[Mapping[str, int], ...] = (
    {"H": 2, "O": 1}, {"C": 1, "O": 2}, {"N": 1, "H": 3}, {"C": 1, "H": 4}, {"C": 2, "H": 6, "O": 1},
    {"H": 2, "S": 1, "O": 4}, {"H": 1, "N": 1, "O": 3}, {"Ca": 1, "C": 1, "O": 3}, {"C": 6, "H": 12, "O": 6},
    {"Na": 2, "C": 1, "O": 3}, {"Mg": 1, "S": 1, "O": 4},
)  # fmt: skip
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """An exercise with its solution and wrong options."""

    question: str
    steps: tuple[str, ...]
    answer: str
    wrong: tuple[str, ...]  # results of likely mistakes; some may equal the answer or each other
    figure: Callable[[fonts.Face], Image.Image] | None = None
    figure_text: str = ""  # the characters of the figure, which the font must cover


def _number(value: Fraction | int) -> str:
    value = Fraction(value)
    return str(value.numerator) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"


def _circuit(rng: random.Random, language: str) -> Exercise:
    r1, r2 = rng.choice(PARALLEL)
    r3 = rng.randint(2, 40)
    side = r1 * r2 // (r1 + r2)
    en = language == "en"
    question = (
        "R₁ and R₂ are connected in parallel, and R₃ in series with them, as the figure shows. "
        "What is the total resistance, in ohms?"
        if en
        else "如图所示，R₁与R₂并联后再与R₃串联。总电阻是多少欧姆？"
    )
    first = "In parallel" if en else "并联部分"
    last = "In series with R₃" if en else "与R₃串联"
    steps = (
        f"{first}: {r1} × {r2} / ({r1} + {r2}) = {r1 * r2} / {r1 + r2} = {side} Ω.",
        f"{last}: {side} + {r3} = {side + r3} Ω.",
    )
    wrong = (str(r1 + r2 + r3), str(side), str(r1 + r2), str(abs(side - r3)), str(side + r3 + 2))
    return Exercise(
        question=question,
        steps=steps,
        answer=str(side + r3),
        wrong=wrong,
        figure=lambda face: _drawn_circuit(face, r1, r2, r3),
        figure_text="R₁₂₃Ω= 0123456789",
    )


def _drawn_circuit(face: fonts.Face, r1: int, r2: int, r3: int) -> Image.Image:
    image = Image.new("RGB", (420, 190), "white")
    draw = ImageDraw.Draw(image)
    for line in (
        [(15, 95), (60, 95)], [(60, 45), (60, 145)], [(60, 45), (220, 45)], [(60, 145), (220, 145)],
        [(220, 45), (220, 145)], [(220, 95), (405, 95)],
    ):  # fmt: skip
        draw.line(line, INK, 2)
    for x, y, name in ((140, 45, f"R₁ = {r1} Ω"), (140, 145, f"R₂ = {r2} Ω"), (310, 95, f"R₃ = {r3} Ω")):
        draw.rectangle((x - 36, y - 11, x + 36, y + 11), "white", INK, 2)
        draw.text((x, y - 16), name, INK, fonts.load(face, 15), "md")
    for x in (15, 405):
        draw.ellipse((x - 4, 91, x + 4, 99), "white", INK, 2)
    return image


def _molar_mass(rng: random.Random, language: str) -> Exercise:
    compound = rng.choice(COMPOUNDS)
    formula = "".join(f"{e}{n if n > 1 else ''}" for e, n in compound.items()).translate(_SUBSCRIPTS)
    listed = ", ".join(f"{element} = {MASSES[element]}" for element in compound)
    total = sum(MASSES[element] * count for element, count in compound.items())
    question = (
        f"What is the molar mass of {formula}, in g/mol? Relative atomic masses: {listed}."
        if language == "en"
        else f"{formula}的摩尔质量是多少（g/mol）？相对原子质量：{listed}。"
    )
    parts = [f"{count} × {MASSES[element]}" for element, count in compound.items()]
    values = [str(count * MASSES[element]) for element, count in compound.items()]
    steps = (f"M({formula}) = {' + '.join(parts)}", f"= {' + '.join(values)} = {total}")
    wrong = (str(sum(MASSES[e] for e in compound)), str(total + 1), str(total - 2), str(total + 16), str(2 * total))
    return Exercise(question=question, steps=steps, answer=str(total), wrong=wrong)


def _determinant(rng: random.Random, language: str) -> Exercise:
    a, b, c, d = (rng.randint(-6, 9) for _ in range(4))
    value = a * d - b * c
    question = "Find the determinant of the matrix A." if language == "en" else "求矩阵A的行列式。"
    steps = (
        f"det A = {_signed(a)} × {_signed(d)} - {_signed(b)} × {_signed(c)}",
        f"= {a * d} - {_signed(b * c)} = {value}",
    )
    wrong = (str(a * d + b * c), str(-value), str(a * b - c * d), str(value + 1), str(value - 3), str(value + 5))
    return Exercise(
        question=question,
        steps=steps,
        answer=str(value),
        wrong=wrong,
        figure=lambda face: _drawn_matrix(face, (a, b, c, d)),
        figure_text="A =-0123456789",
    )


def _drawn_matrix(face: fonts.Face, entries: tuple[int, ...]) -> Image.Image:
    image, font = Image.new("RGB", (250, 110), "white"), fonts.load(face, 22)
    draw = ImageDraw.Draw(image)
    draw.text((20, 55), "A =", INK, font, "lm")
    for x, inward in ((78, 8), (228, -8)):
        draw.line([(x + inward, 15), (x, 15), (x, 95), (x + inward, 95)], INK, 2)
    for at, entry in enumerate(entries):
        draw.text((115 + 76 * (at % 2), 35 + 40 * (at // 2)), str(entry), INK, font, "mm")
    return image


def _signed(value: int) -> str:
    return f"({value})" if value < 0 else str(value)


def _derivative(rng: random.Random, language: str) -> Exercise:
    a, b, c, k = rng.randint(2, 6), rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 4)
    value = 3 * a * k**2 + 2 * b * k + c
    f = f"f(x) = {a}x³ + {b}x² + {c}x"
    question = f"Let {f}. What is f′({k})?" if language == "en" else f"设{f}，求f′({k})。"
    steps = (
        f"f′(x) = {3 * a}x² + {2 * b}x + {c}",
        f"f′({k}) = {3 * a} × {k**2} + {2 * b} × {k} + {c} = {3 * a * k**2} + {2 * b * k} + {c} = {value}",
    )
    wrong = (
        str(a * k**3 + b * k**2 + c * k),
        str(value - c),
        str(a * k**2 + b * k + c),
        str(value + k),
        str(value + 5),
    )
    return Exercise(question=question, steps=steps, answer=str(value), wrong=wrong)


def _variance(rng: random.Random, language: str) -> Exercise:
    while True:
        data = [rng.randint(1, 20) for _ in range(rng.choice((4, 5)))]
        if sum(data) % len(data) == 0 and len(set(data)) > 1:
            break
    n, mean = len(data), sum(data) // len(data)
    squares = [(x - mean) ** 2 for x in data]
    value = Fraction(sum(squares), n)
    en = language == "en"
    question = (
        "The table shows all values of a population. What is its variance?" if en else "表中是总体的全部数据，求方差。"
    )
    first, last = ("The mean is", "The variance is") if en else ("平均数为", "方差为")
    steps = (
        f"{first} {sum(data)} / {n} = {mean}.",
        f"{last} ({' + '.join(map(str, squares))}) / {n} = {_number(value)}.",
    )
    wrong = (
        _number(Fraction(sum(squares), n - 1)),
        str(sum(squares)),
        str(mean),
        _number(value + 1),
        _number(value + 2),
    )
    return Exercise(
        question=question,
        steps=steps,
        answer=_number(value),
        wrong=wrong,
        figure=lambda face: _drawn_data(face, data),
        figure_text="x₁₂₃₄₅0123456789",
    )


def _drawn_data(face: fonts.Face, data: list[int]) -> Image.Image:
    image = Image.new("RGB", (60 * len(data) + 21, 90), "white")
    draw = ImageDraw.Draw(image)
    for at, x in enumerate(data):
        for row, cell in enumerate((f"x{str(at + 1).translate(_SUBSCRIPTS)}", str(x))):
            left, top = 10 + 60 * at, 10 + 35 * row
            draw.rectangle((left, top, left + 60, top + 35), (232, 238, 246) if row == 0 else "white", INK)
            draw.text((left + 30, top + 17), cell, INK, fonts.load(face, 17), "mm")
    return image


def _genetics(rng: random.Random, language: str) -> Exercise:
    first, second = rng.choice(("Aa", "aa", "Aa")), rng.choice(("Aa", "aa", "AA"))
    children = ["".join(sorted((x, y))) for x in first for y in second]
    asked = rng.choice(("AA", "Aa", "aa"))
    percent = 25 * children.count(asked)
    en = language == "en"
    question = (
        f"The parents of the cross in the figure are {first} and {second}. What percentage of the offspring should "
        f"be {asked}?"
        if en
        else f"图中杂交的亲本为{first}和{second}。子代中{asked}所占的百分比预期是多少？"
    )
    listed = ", ".join(children) if en else "、".join(children)
    steps = (
        f"The four cells are {listed}." if en else f"四个格子为{listed}。",
        f"{children.count(asked)} / 4 = {percent}%",
    )
    return Exercise(
        question=question,
        steps=steps,
        answer=f"{percent}%",
        wrong=tuple(f"{p}%" for p in rng.sample((0, 25, 50, 75, 100), 5)),
        figure=lambda face: _punnett(face, first, second),
        figure_text="Aa?",
    )


def _punnett(face: fonts.Face, first: str, second: str) -> Image.Image:
    image, font = Image.new("RGB", (200, 200), "white"), fonts.load(face, 22)
    draw = ImageDraw.Draw(image)
    for at in range(2):
        draw.text((95 + 60 * at, 40), first[at], INK, font, "mm")
        draw.text((40, 95 + 60 * at), second[at], INK, font, "mm")
        for row in range(2):
            draw.rectangle((65 + 60 * at, 65 + 60 * row, 125 + 60 * at, 125 + 60 * row), None, INK, 2)
            draw.text((95 + 60 * at, 95 + 60 * row), "?", (150, 150, 150), font, "mm")
    return image


def _market(rng: random.Random, language: str) -> Exercise:
    price, b, d = rng.randint(3, 20), rng.randint(2, 6), rng.randint(1, 5)
    c = rng.randint(2, 30)
    quantity = c + d * price
    a = quantity + b * price
    demand, supply = f"Q = {a} - {b}P", f"Q = {c} + {d}P"
    en = language == "en"
    question = (
        f"Demand is {demand} and supply is {supply}. What is the equilibrium price P?"
        if en
        else f"需求函数为{demand}，供给函数为{supply}。均衡价格P是多少？"
    )
    first = "In equilibrium" if en else "均衡时"
    steps = (f"{first}: {a} - {b}P = {c} + {d}P", f"{a - c} = {b + d}P", f"P = {a - c} / {b + d} = {price}")
    wrong = (str(quantity), str(price + 1), str(price + b), str(a - c), str(price + 2))
    return Exercise(question=question, steps=steps, answer=str(price), wrong=wrong)


EXERCISES: dict[str, Callable[[random.Random, str], Exercise]] = {
    "circuit": _circuit, "molar_mass": _molar_mass, "determinant": _determinant, "derivative": _derivative,
    "variance": _variance, "genetics": _genetics, "market": _market,
}  # fmt: skip
