"""Generate random matplotlib scripts of many kinds, in the style in which a person would write them."""

from __future__ import annotations

import random

from vl2.synth import words

COLORS = (
    "steelblue",
    "tomato",
    "seagreen",
    "orange",
    "purple",
    "teal",
    "crimson",
    "#4c72b0",
    "#dd8452",
    "0.4",
    "goldenrod",
)
MAPS = ("viridis", "plasma", "coolwarm", "Blues", "Greens", "magma", "cividis")
SUBJECTS = ("Sales", "Visitors", "Rainfall", "Temperature", "Energy", "Speed", "Price", "Height", "Score", "Traffic")
GROUPS = (
    ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"),
    ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug"),
    ("North", "East", "South", "West"),
    ("2019", "2020", "2021", "2022", "2023", "2024"),
    words.CITIES["en"],
)
FUNCTIONS = ("np.sin(x)", "np.cos(x)", "np.exp(-x / 4)", "np.sqrt(x)", "x ** 2 / 10", "np.sin(x) * x", "np.log1p(x)")
KINDS = (
    "bar", "barh", "grouped", "stacked", "line", "lines", "function", "scatter", "bubble", "pie", "hist", "heatmap",
    "step", "area", "box", "errorbar", "two", "polar", "contour", "stem",
)  # fmt: skip


def write_script(kind: str, rng: random.Random) -> str:
    """Return a random script that draws a plot of one of the kinds in KINDS."""
    body = _BODIES[kind](rng)
    uses_numpy = "np." in body
    subplots = kind in ("two", "polar")
    lines = ["import matplotlib.pyplot as plt"]
    if uses_numpy:
        lines.append("import numpy as np")
    lines.append("")
    if not subplots and rng.random() < 0.7:
        lines.append(f"plt.figure(figsize=({rng.choice((4, 5, 6, 7, 8))}, {rng.choice((3, 4, 5))}))")
    lines.append(body)
    if not subplots:
        lines += _labels(kind, rng)
    lines.append("plt.tight_layout()")  # without it, labels of small figures are cut off
    lines.append("plt.show()")
    return "\n".join(lines) + "\n"


def _labels(kind: str, rng: random.Random) -> list[str]:
    lines = [f'plt.title("{_title(rng)}")']
    if kind not in ("pie", "heatmap"):
        if rng.random() < 0.6:
            lines += [f'plt.xlabel("{rng.choice(("Group", "Time", "x", "Step", "Place"))}")']
        if rng.random() < 0.6:
            lines += [f'plt.ylabel("{rng.choice(SUBJECTS)}")']
        if rng.random() < 0.4:
            lines.append(rng.choice(("plt.grid(True)", 'plt.grid(axis="y", alpha=0.4)', 'plt.grid(linestyle="--")')))
    return lines


def _title(rng: random.Random) -> str:
    return f"{rng.choice(SUBJECTS)} in {rng.choice((*words.CITIES['en'], '2021', '2023', 'spring', 'autumn'))}"


def _names(rng: random.Random) -> list[str]:
    group = rng.choice(GROUPS)
    return list(group[: rng.randint(3, min(7, len(group)))])


def _values(rng: random.Random, count: int) -> list[float] | list[int]:
    top = rng.choice((10, 50, 100, 1000))
    if rng.random() < 0.3:
        return [round(rng.uniform(0.1, 1) * top, 1) for _ in range(count)]
    return [rng.randint(1, top) for _ in range(count)]


def _color(rng: random.Random) -> str:
    return rng.choice(COLORS)


def _bar(rng: random.Random, call: str = "bar") -> str:
    names = _names(rng)
    extra = rng.choice(("", ', edgecolor="black"', ", alpha=0.7"))
    data = f"names = {names}\nvalues = {_values(rng, len(names))}\n"
    text = f'{data}plt.{call}(names, values, color="{_color(rng)}"{extra})'
    if call == "bar" and rng.random() < 0.4:
        text += '\nfor i, v in enumerate(values):\n    plt.text(i, v, str(v), ha="center", va="bottom")'
    return text


def _barh(rng: random.Random) -> str:
    return _bar(rng, "barh")


def _grouped(rng: random.Random) -> str:
    names, first, second = _names(rng), *rng.sample(SUBJECTS, 2)
    a, b = rng.sample(COLORS, 2)
    return (
        f"names = {names}\na = {_values(rng, len(names))}\nb = {_values(rng, len(names))}\n"
        f"x = np.arange(len(names))\nwidth = {rng.choice((0.3, 0.35, 0.4))}\n"
        f'plt.bar(x - width / 2, a, width, label="{first}", color="{a}")\n'
        f'plt.bar(x + width / 2, b, width, label="{second}", color="{b}")\nplt.xticks(x, names)\nplt.legend()'
    )


def _stacked(rng: random.Random) -> str:
    names, first, second = _names(rng), *rng.sample(SUBJECTS, 2)
    a, b = rng.sample(COLORS, 2)
    return (
        f"names = {names}\na = {_values(rng, len(names))}\nb = {_values(rng, len(names))}\n"
        f'plt.bar(names, a, label="{first}", color="{a}")\n'
        f'plt.bar(names, b, bottom=a, label="{second}", color="{b}")\nplt.legend()'
    )


def _line(rng: random.Random) -> str:
    names = _names(rng)
    style = f'marker="{rng.choice("os^D*x")}", linestyle="{rng.choice(("-", "--", ":", "-."))}"'
    return f'x = {names}\ny = {_values(rng, len(names))}\nplt.plot(x, y, {style}, color="{_color(rng)}")'


def _lines(rng: random.Random) -> str:
    count = rng.randint(5, 9)
    lines = [f"x = {list(range(1, count + 1))}"]
    picked = rng.sample(SUBJECTS, rng.randint(2, 3))
    for subject, color in zip(picked, rng.sample(COLORS, len(picked)), strict=True):
        style = f'label="{subject}", color="{color}", marker="{rng.choice("os^D")}"'
        lines.append(f"plt.plot(x, {_values(rng, count)}, {style})")
    return "\n".join((*lines, "plt.legend()"))


def _function(rng: random.Random) -> str:
    lines = [f"x = np.linspace(0, {rng.choice((5, 6, 10, 12))}, 200)"]
    picked = rng.sample(FUNCTIONS, rng.randint(1, 3))
    for function, color in zip(picked, rng.sample(COLORS, len(picked)), strict=True):
        lines.append(f'plt.plot(x, {function}, label="{function.replace("np.", "")}", color="{color}")')
    return "\n".join((*lines, "plt.legend()"))


def _scatter(rng: random.Random) -> str:
    count = rng.randint(8, 16)
    style = f'color="{_color(rng)}", marker="{rng.choice("os^D*")}", s={rng.choice((20, 40, 70))}'
    return f"x = {_values(rng, count)}\ny = {_values(rng, count)}\nplt.scatter(x, y, {style})"


def _bubble(rng: random.Random) -> str:
    count = rng.randint(5, 9)
    sizes = [rng.randint(40, 600) for _ in range(count)]
    return (
        f"x = {_values(rng, count)}\ny = {_values(rng, count)}\nsizes = {sizes}\n"
        f'plt.scatter(x, y, s=sizes, c=sizes, cmap="{rng.choice(MAPS)}", alpha=0.7)\nplt.colorbar()'
    )


def _pie(rng: random.Random) -> str:
    names = _names(rng)[:5]
    values = [rng.randint(10, 60) for _ in names]
    extra = rng.choice(("", ', autopct="%1.1f%%"', ", startangle=90", ', autopct="%1.0f%%", startangle=45'))
    return f"labels = {names}\nsizes = {values}\nplt.pie(sizes, labels=labels{extra})"


def _hist(rng: random.Random) -> str:
    draw = rng.choice(("rng.normal({a}, {b}, 400)", "rng.exponential({b}, 400)", "rng.uniform(0, {a}, 400)"))
    data = draw.format(a=rng.randint(10, 60), b=rng.randint(2, 12))
    return (
        f"rng = np.random.default_rng({rng.randint(0, 99)})\ndata = {data}\n"
        f'plt.hist(data, bins={rng.choice((10, 15, 20, 30))}, color="{_color(rng)}", edgecolor="white")'
    )


def _heatmap(rng: random.Random) -> str:
    rows, columns = rng.randint(3, 5), rng.randint(3, 6)
    data = [[rng.randint(0, 99) for _ in range(columns)] for _ in range(rows)]
    text = f'data = {data}\nplt.imshow(data, cmap="{rng.choice(MAPS)}")\nplt.colorbar()'
    if rng.random() < 0.5:
        text += (
            "\nfor i, row in enumerate(data):\n    for j, v in enumerate(row):\n"
            '        plt.text(j, i, v, ha="center", va="center", color="white")'
        )
    return text


def _step(rng: random.Random) -> str:
    count = rng.randint(6, 10)
    where = rng.choice(("pre", "post", "mid"))
    return (
        f'x = {list(range(count))}\ny = {_values(rng, count)}\nplt.step(x, y, where="{where}", color="{_color(rng)}")'
    )


def _area(rng: random.Random) -> str:
    count, color = rng.randint(6, 10), _color(rng)
    return (
        f"x = {list(range(count))}\ny = {_values(rng, count)}\n"
        f'plt.fill_between(x, y, color="{color}", alpha=0.4)\nplt.plot(x, y, color="{color}")'
    )


def _box(rng: random.Random) -> str:
    names = _names(rng)[:4]
    data = [[rng.randint(10, 90) for _ in range(8)] for _ in names]
    return f"data = {data}\nplt.boxplot(data)\nplt.xticks({list(range(1, len(names) + 1))}, {names})"


def _errorbar(rng: random.Random) -> str:
    count = rng.randint(4, 8)
    errors = [rng.randint(1, 9) for _ in range(count)]
    style = f'fmt="{rng.choice(("o", "s", "o-", "^--"))}", capsize={rng.choice((2, 4, 6))}, color="{_color(rng)}"'
    return f"x = {list(range(1, count + 1))}\ny = {_values(rng, count)}\nplt.errorbar(x, y, yerr={errors}, {style})"


def _two(rng: random.Random) -> str:
    names, count = _names(rng)[:4], rng.randint(5, 8)
    return (
        f"fig, axes = plt.subplots(1, 2, figsize=({rng.choice((8, 9, 10))}, 4))\n"
        f'axes[0].bar({names}, {_values(rng, len(names))}, color="{_color(rng)}")\n'
        f'axes[0].set_title("{_title(rng)}")\n'
        f'axes[1].plot({list(range(count))}, {_values(rng, count)}, marker="o", color="{_color(rng)}")\n'
        f'axes[1].set_title("{_title(rng)}")'
    )


def _polar(rng: random.Random) -> str:
    expression = rng.choice(
        ("1 + np.cos(t)", "np.abs(np.sin(3 * t))", "t / 5", "2 + np.sin(5 * t)", "np.cos(2 * t) ** 2")
    )
    return (
        't = np.linspace(0, 2 * np.pi, 300)\nfig, ax = plt.subplots(subplot_kw={"projection": "polar"})\n'
        f'ax.plot(t, {expression}, color="{_color(rng)}")\nax.set_title("{_title(rng)}")'
    )


def _contour(rng: random.Random) -> str:
    expression = rng.choice(("np.sin(X) * np.cos(Y)", "X ** 2 + Y ** 2", "X * Y", "np.exp(-X ** 2 - Y ** 2)"))
    call = rng.choice(("contour", "contourf"))
    return (
        f"x = np.linspace(-{rng.choice((2, 3, 4))}, 3, 80)\nX, Y = np.meshgrid(x, x)\n"
        f'plt.{call}(X, Y, {expression}, levels={rng.choice((6, 10, 14))}, cmap="{rng.choice(MAPS)}")\nplt.colorbar()'
    )


def _stem(rng: random.Random) -> str:
    count = rng.randint(6, 12)
    return f"x = {list(range(count))}\ny = {_values(rng, count)}\nplt.stem(x, y)"


_BODIES = {
    "bar": _bar, "barh": _barh, "grouped": _grouped, "stacked": _stacked, "line": _line, "lines": _lines,
    "function": _function, "scatter": _scatter, "bubble": _bubble, "pie": _pie, "hist": _hist, "heatmap": _heatmap,
    "step": _step, "area": _area, "box": _box, "errorbar": _errorbar, "two": _two, "polar": _polar,
    "contour": _contour, "stem": _stem,
}  # fmt: skip
