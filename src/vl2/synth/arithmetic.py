"""Make mathematical problems with worked steps and the answer at the end, or with the answer only for small models.

A problem is a text, a text in an image, or a figure with its lengths written on it. All numbers are integers or exact
fractions.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from PIL import Image, ImageDraw

from vl2.synth import fonts, words
from vl2.synth.distort import distort
from vl2.synth.draft import Draft
from vl2.synth.page import Page, choose_paper, ink_for, line_height, make_paper, text_width, wrap
from vl2.synth.source import Source

ANSWER_SHORT = "Answer with the final result only."
IN_IMAGE = (
    "Solve the problem in the image.",
    "What is the answer to the problem shown?",
    "Work out the exercise in the picture.",
)


@dataclass(frozen=True, kw_only=True)
class ArithmeticProblem:
    """A problem, its worked steps and its answer."""

    question: str
    steps: tuple[str, ...]
    answer: str
    figure: Image.Image | None = None  # the figure that the question is about, if any

    @property
    def worked(self) -> str:
        return "\n".join((*self.steps, f"The answer is {self.answer}."))


@dataclass(frozen=True, kw_only=True)
class Arithmetic(Source):
    """Sums, equations, percentages, stories and areas."""

    name = "arithmetic"
    category = "reasoning"
    tasks_known: ClassVar[tuple[str, ...]] = (
        "sum", "product", "order", "division", "equation", "percent", "fraction", "sequence", "shopping", "speed",
        "rectangle", "triangle", "angle",
    )  # fmt: skip

    form: str = "mixed"  # "worked", "concise", or "mixed"
    font_folders: tuple[str, ...] | None = None

    def draft(self, rng: random.Random) -> Draft:
        task = self.pick_task(rng)
        problem = PROBLEMS[task](rng)
        concise = self.form == "concise" or (self.form == "mixed" and rng.random() < 0.35)
        draft = Draft(language="en", traits={"task": task, "form": "concise" if concise else "worked"})
        question = problem.question
        if problem.figure is not None:
            draft.picture(problem.figure)
        elif rng.random() < 0.5:
            self._print(draft, question, rng)
            question = rng.choice(IN_IMAGE)
        draft.ask(f"{question} {ANSWER_SHORT}" if concise else question, problem.answer if concise else problem.worked)
        return draft

    def _print(self, draft: Draft, text: str, rng: random.Random) -> None:
        """Draw the text of a problem as an image, and add it to the draft."""
        face = fonts.choose_face(rng, text, self.font_folders) or fonts.BUILT_IN
        font, kind, margin = fonts.load(face, rng.randint(18, 30)), choose_paper(rng), rng.randint(14, 40)
        lines, step = wrap(text, font, rng.randint(280, 480), "en"), round(line_height(font) * 1.25)
        width = max(text_width(font, line) for line in lines) + 2 * margin
        page = Page(make_paper(kind, (width, step * len(lines) + 2 * margin), rng))
        ink = ink_for(kind, rng)
        for number, line in enumerate(lines):
            page.write((margin, margin + number * step), line, font, ink)
        picture = distort(page.image, rng, rng.randint(0, 2))
        draft.traits |= {"font": face.name, "paper": kind}
        draft.picture(picture.image, jpeg_quality=picture.jpeg_quality)


def _sum(rng: random.Random) -> ArithmeticProblem:
    numbers = [rng.randint(10, 999) for _ in range(rng.randint(2, 4))]
    steps, total = [], numbers[0]
    for number in numbers[1:]:
        steps.append(f"{total} + {number} = {total + number}")
        total += number
    return ArithmeticProblem(
        question=f"What is {' + '.join(map(str, numbers))}?", steps=tuple(steps), answer=str(total)
    )


def _product(rng: random.Random) -> ArithmeticProblem:
    a, b = rng.randint(12, 99), rng.randint(12, 99)
    tens, ones = b // 10 * 10, b % 10
    steps = (f"{a} × {tens} = {a * tens}", f"{a} × {ones} = {a * ones}", f"{a * tens} + {a * ones} = {a * b}")
    return ArithmeticProblem(question=f"What is {a} × {b}?", steps=steps, answer=str(a * b))


def _order(rng: random.Random) -> ArithmeticProblem:
    a, b, c, d = (rng.randint(2, 20) for _ in range(4))
    first, inner = a * b, c + d
    steps = (
        f"First the bracket: {c} + {d} = {inner}.",
        f"Then the product: {a} × {b} = {first}.",
        f"Last the difference: {first} - {inner} = {first - inner}.",
    )
    return ArithmeticProblem(question=f"Calculate {a} × {b} - ({c} + {d}).", steps=steps, answer=str(first - inner))


def _division(rng: random.Random) -> ArithmeticProblem:
    b, q = rng.randint(3, 25), rng.randint(4, 60)
    r = rng.randint(1, b - 1)
    n = b * q + r
    steps = (f"{b} × {q} = {b * q}, which is not more than {n}.", f"{n} - {b * q} = {r}, which is less than {b}.")
    return ArithmeticProblem(
        question=f"Divide {n} by {b}. Give the quotient and the remainder.", steps=steps, answer=f"{q} remainder {r}"
    )


def _equation(rng: random.Random) -> ArithmeticProblem:
    a, x, b = rng.randint(2, 12), rng.randint(-12, 20), rng.randint(1, 40)
    c = a * x + b
    steps = (f"Subtract {b} on both sides: {a}x = {c - b}.", f"Divide both sides by {a}: x = {x}.")
    return ArithmeticProblem(question=f"Solve {a}x + {b} = {c} for x.", steps=steps, answer=f"x = {x}")


def _percent(rng: random.Random) -> ArithmeticProblem:
    percent, base = rng.choice((5, 10, 15, 20, 25, 30, 40, 60, 75)), rng.randint(2, 60) * 20
    result = Fraction(percent * base, 100)
    steps = (f"1% of {base} is {base} / 100 = {_decimal(Fraction(base, 100))}.",
             f"{percent}% is {percent} × {_decimal(Fraction(base, 100))} = {_decimal(result)}.")  # fmt: skip
    return ArithmeticProblem(question=f"What is {percent}% of {base}?", steps=steps, answer=_decimal(result))


def _decimal(value: Fraction) -> str:
    """Format a fraction exactly as a decimal. It must be a multiple of 1/100."""
    hundredths = value * 100
    assert hundredths.denominator == 1, value
    whole, rest = divmod(int(hundredths), 100)
    return f"{whole}.{rest:02d}".rstrip("0").rstrip(".")


def _fraction(rng: random.Random) -> ArithmeticProblem:
    b, d = rng.sample(range(2, 13), 2)
    a, c = rng.randint(1, b - 1), rng.randint(1, d - 1)
    total = Fraction(a, b) + Fraction(c, d)
    steps = (
        f"The common denominator is {b} × {d} = {b * d}.",
        f"{a}/{b} = {a * d}/{b * d} and {c}/{d} = {c * b}/{b * d}.",
        f"{a * d}/{b * d} + {c * b}/{b * d} = {a * d + c * b}/{b * d}, in lowest terms {total}.",
    )
    return ArithmeticProblem(question=f"Add {a}/{b} + {c}/{d} and simplify.", steps=steps, answer=str(total))


def _bracketed(number: int) -> str:
    return f"({number})" if number < 0 else str(number)


def _sequence(rng: random.Random) -> ArithmeticProblem:
    start, step = rng.randint(1, 30), rng.randint(2, 15) * rng.choice((-1, 1))
    shown = [start + n * step for n in range(5)]
    verb = "grows" if step > 0 else "falls"
    steps = (
        f"Each number {verb} by {abs(step)}: {shown[1]} - {_bracketed(shown[0])} = {step}.",
        f"The next is {shown[-1]} {'+' if step > 0 else '-'} {abs(step)} = {shown[-1] + step}.",
    )
    return ArithmeticProblem(
        question=f"Which number comes next: {', '.join(map(str, shown))}, ...?",
        steps=steps,
        answer=str(shown[-1] + step),
    )


def _shopping(rng: random.Random) -> ArithmeticProblem:
    who, (good, other) = (
        rng.choice(words.FIRST_NAMES),
        rng.sample(("pens", "books", "apples", "tickets", "cups", "rulers"), 2),
    )
    n, m, p, q = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 15), rng.randint(2, 15)
    cost = n * p + m * q
    paid = cost + rng.randint(1, 30)
    question = (
        f"{who} buys {n} {good} at {p} dollars each and {m} {other} at {q} dollars each, and pays with {paid} dollars. "
        "How much change is due, in dollars?"
    )
    steps = (
        f"The {good} cost {n} × {p} = {n * p} dollars.",
        f"The {other} cost {m} × {q} = {m * q} dollars.",
        f"Together that is {n * p} + {m * q} = {cost} dollars.",
        f"The change is {paid} - {cost} = {paid - cost} dollars.",
    )
    return ArithmeticProblem(question=question, steps=steps, answer=str(paid - cost))


def _speed(rng: random.Random) -> ArithmeticProblem:
    speed, hours, extra = rng.randint(4, 30) * 4, rng.randint(2, 7), rng.choice((15, 30, 45))
    part = Fraction(speed * extra, 60)
    total = speed * hours + part
    question = f"A train runs at {speed} km/h for {hours} hours and {extra} minutes. How many kilometres does it cover?"
    steps = (
        f"In {hours} hours it covers {speed} × {hours} = {speed * hours} km.",
        f"In {extra} minutes it covers {speed} × {extra} / 60 = {_decimal(part)} km.",
        f"{speed * hours} + {_decimal(part)} = {_decimal(total)} km.",
    )
    return ArithmeticProblem(question=question, steps=steps, answer=_decimal(total))


def _rectangle(rng: random.Random) -> ArithmeticProblem:
    w, h = rng.randint(6, 20), rng.randint(3, 14)
    figure = _figure([(0, 0), (w, 0), (w, h), (0, h)], {0: f"{w} cm", 1: f"{h} cm"}, rng)
    if rng.random() < 0.5:
        steps: tuple[str, ...] = ("The area of a rectangle is width times height.", f"{w} × {h} = {w * h}.")
        return ArithmeticProblem(
            question="What is the area of the rectangle, in cm²?", steps=steps, answer=str(w * h), figure=figure
        )
    steps = (
        "The perimeter is twice the sum of width and height.",
        f"{w} + {h} = {w + h}.",
        f"2 × {w + h} = {2 * (w + h)}.",
    )
    return ArithmeticProblem(
        question="What is the perimeter of the rectangle, in cm?", steps=steps, answer=str(2 * (w + h)), figure=figure
    )


def _triangle(rng: random.Random) -> ArithmeticProblem:
    a, b, c = rng.choice(((3, 4, 5), (5, 12, 13), (8, 15, 17), (7, 24, 25), (20, 21, 29)))
    k = rng.randint(1, 4)
    a, b, c = a * k, b * k, c * k
    if rng.random() < 0.5:
        figure = _figure([(0, 0), (a, b), (0, b)], {1: f"{a} cm", 2: f"{b} cm"}, rng, right_at=2)
        steps: tuple[str, ...] = (
            "In a right triangle the square of the longest side is the sum of the squares of the other two.",
            f"{a}² + {b}² = {a * a} + {b * b} = {c * c}.",
            f"The square root of {c * c} is {c}.",
        )
        return ArithmeticProblem(
            question="How long is the third side, in cm?", steps=steps, answer=str(c), figure=figure
        )
    figure = _figure([(0, 0), (a, b), (0, b)], {1: f"{a} cm", 2: f"{b} cm"}, rng, right_at=2)
    steps = ("The area of a right triangle is half the product of its short sides.", f"{a} × {b} = {a * b}.",
             f"{a * b} / 2 = {a * b // 2}.")  # fmt: skip
    return ArithmeticProblem(
        question="What is the area of the triangle, in cm²?", steps=steps, answer=str(a * b // 2), figure=figure
    )


def _angle(rng: random.Random) -> ArithmeticProblem:
    a, b = rng.randint(35, 80), rng.randint(35, 80)
    c = 180 - a - b
    question = f"Two angles of a triangle are {a}° and {b}°. How large is the third, in degrees?"
    steps = ("The angles of a triangle add up to 180°.", f"{a} + {b} = {a + b}.", f"180 - {a + b} = {c}.")
    return ArithmeticProblem(question=question, steps=steps, answer=str(c))


def _figure(
    corners: list[tuple[int, int]], sides: dict[int, str], rng: random.Random, right_at: int | None = None
) -> Image.Image:
    """Draw a polygon with texts at some of its sides. Side n goes from corner n to the next corner.

    `right_at` is the index of a corner that is marked as a right angle.
    """
    scale, margin = 240 / max(max(x for x, _ in corners), max(y for _, y in corners)), 80
    points = [(margin + x * scale, margin + y * scale) for x, y in corners]
    size = (round(max(x for x, _ in points)) + margin, round(max(y for _, y in points)) + margin)
    image = make_paper(rng.choice(("white", "plain", "squared")), size, rng)
    draw, ink = ImageDraw.Draw(image), (30, 30, 40)
    draw.polygon(points, fill=rng.choice(((214, 230, 245), (250, 232, 205), (222, 240, 220))), outline=ink, width=3)
    font = fonts.load(rng.choice(fonts.faces_for("0123456789 cm")), rng.randint(18, 24))
    middle = (sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points))
    for at, text in sides.items():
        (x0, y0), (x1, y1) = points[at], points[(at + 1) % len(points)]
        # The text is outside the polygon, on the side that is farther from its center.
        dx, dy = (x0 + x1) / 2 - middle[0], (y0 + y1) / 2 - middle[1]
        anchor = ("lm" if dx > 0 else "rm") if abs(x1 - x0) < abs(y1 - y0) else ("ma" if dy > 0 else "md")
        shift = {"lm": (10, 0), "rm": (-10, 0), "ma": (0, 8), "md": (0, -8)}[anchor]
        draw.text(((x0 + x1) / 2 + shift[0], (y0 + y1) / 2 + shift[1]), text, ink, font, anchor)
    if right_at is not None:
        x, y = points[right_at]
        draw.line([(x, y - 16), (x + 16, y - 16), (x + 16, y)], fill=ink, width=2)
    return image


PROBLEMS: dict[str, Callable[[random.Random], ArithmeticProblem]] = {
    "sum": _sum, "product": _product, "order": _order, "division": _division, "equation": _equation,
    "percent": _percent, "fraction": _fraction, "sequence": _sequence, "shopping": _shopping, "speed": _speed,
    "rectangle": _rectangle, "triangle": _triangle, "angle": _angle,
}  # fmt: skip
