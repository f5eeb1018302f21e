"""A Sphinx extension: pages of the documentation site that are written from the code while the site is built.

A page of docs/ holds a line `<!-- generated: NAME -->`. NAME is `commands` (the help of every command), `python` (what
`vl2.__all__` names), `http` (the server's OpenAPI description), `recipe` (the values of a recipe), or a file of the
repository, such as CHANGELOG.md. Links to files that are not on the site become the file's path in a checkout.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Files outside docs/ that a page of the site shows.
PAGE_OF = {
    "README.md": "index.md",
    "README.zh.md": "index.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CODE_OF_CONDUCT.md": "project/code-of-conduct.md",
}
MARKER = re.compile(r"^<!-- generated: (?P<name>[\w.-]+) -->$", re.MULTILINE)
FENCE = re.compile(r"(^(?P<fence>`{3,}).*?^(?P=fence)$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)")
# A field of a dataclass on one line, with a comment behind it or a docstring below it.
FIELD = re.compile(
    r"^    (?P<name>[a-z]\w*): (?P<type>[^=#\n]+?)(?: = (?P<default>[^#\n]+?))?(?:  # (?P<comment>[^\n]+))?\n"
    r"(?:    \"\"\"(?P<docstring>[^\n]+?) ?\"\"\"\n)?",
    re.MULTILINE,
)


def generate(name: str) -> str:
    """Return the Markdown that stands for a marker."""
    makers = {"commands": commands_page, "python": python_page, "http": http_page, "recipe": recipe_page}
    return makers[name]() if name in makers else (ROOT / name).read_text(encoding="utf-8")


def fill(text: str, page: Path) -> str:
    """Return the text of a page with its links led to pages of the site, and its markers filled."""

    def filled(match: re.Match[str]) -> str:
        made = generate(match["name"])
        return site_links(made, ROOT, page) if (ROOT / match["name"]).is_file() else made

    return MARKER.sub(filled, site_links(text, page.parent, page))


def site_links(text: str, home: Path, page: Path) -> str:
    """Return Markdown of a file in the folder `home` with links that hold on `page`. Blocks of code stay."""

    def led(match: re.Match[str]) -> str:
        path, hash_sign, anchor = match["target"].partition("#")
        file = (home / path).resolve()
        if "://" in match["target"] or not path or not file.is_relative_to(ROOT):
            return match[0]
        name = file.relative_to(ROOT).as_posix()
        if name in PAGE_OF:
            file = DOCS / PAGE_OF[name]
        elif not file.is_relative_to(DOCS):
            return match["text"] if name in match["text"] else f"{match['text']} (`{name}`)"
        return f"[{match['text']}]({Path(os.path.relpath(file, page.parent)).as_posix()}{hash_sign}{anchor})"

    parts = FENCE.split(text)[::3], FENCE.split(text)[1::3]
    outside = [LINK.sub(led, part) for part in parts[0]]
    return "".join(part for pair in zip(outside, [*parts[1], ""], strict=True) for part in pair)


def commands_page() -> str:
    """Return the help of every command under a heading of its own."""
    from vl2.cli.parse import COMMANDS, GROUPS

    parts = []
    for name in COMMANDS:
        for words in ([name], *([name, second] for second in GROUPS.get(name, {}))):
            parts.append(f"{'#' * (1 + len(words))} vl2 {' '.join(words)}\n\n```text\n{help_of(words)}\n```\n")
    return "\n".join(parts)


def help_of(words: list[str]) -> str:
    """Return what `vl2 WORDS --help` prints in a terminal of 80 columns."""
    from vl2.cli.parse import parse

    columns, printed = os.environ.get("COLUMNS"), io.StringIO()
    os.environ["COLUMNS"] = "80"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            parse([*words, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).strip()


def python_page() -> str:
    """Return a section for each public name: its signature, docstring and methods by autodoc, its fields as a table."""
    import vl2

    parts = []
    for name in sorted(vl2.__all__, key=lambda name: (not name[0].islower(), name.lower())):
        value = getattr(vl2, name)
        if value.__name__ != name:
            parts.append(f"## {name}\n\nAnother spelling of `{value.__name__}`.\n")
            continue
        kind = "autofunction" if inspect.isfunction(value) else "autoclass"
        members = "" if kind == "autofunction" else "\n   :members:"
        parts.append(f"## {name}\n\n```{{eval-rst}}\n.. {kind}:: vl2.{name}{members}\n```\n\n{fields_table(value)}")
    return "\n".join(parts)


def fields_table(value: Any, leave_out: Collection[str] = ()) -> str:
    """Return the fields of a dataclass as a table, with the comments that stand beside them in the code."""
    if not hasattr(value, "__dataclass_fields__"):
        return ""
    found = {match["name"]: match for match in FIELD.finditer(inspect.getsource(value))}
    rows = [
        (
            f"`{name}`",
            f"`{found[name]['type']}`",
            code(found[name]["default"]),
            plain(found[name]["comment"] or found[name]["docstring"] or ""),
        )
        for name in value.__dataclass_fields__
        if name in found and name not in leave_out
    ]
    return table(("field", "type", "default", ""), rows) if rows else ""


def recipe_page() -> str:
    """Return the tables of a recipe with their values."""
    from vl2.train.recipe import GroupOptions, Recipe, SourceOptions

    tables = {name: kind for name, kind in get_type_hints(Recipe).items() if dataclasses.is_dataclass(kind)}
    parts = [f"## Top of the file\n\n{fields_table(Recipe, leave_out=set(tables))}"]
    for name, kind in tables.items():
        parts.append(f"## `[{name}]`\n\n{plain(inspect.getdoc(kind) or '')}\n\n{fields_table(kind)}")
        if name == "data":
            for key, item in (("sources", SourceOptions), ("groups", GroupOptions)):
                parts.append(f"### An item of `{key}`\n\n{plain(inspect.getdoc(item) or '')}\n\n{fields_table(item)}")
    return "\n".join(parts)


def http_page() -> str:
    """Return the endpoints with the fields of their bodies, and the objects that these fields hold."""
    from fastapi import FastAPI

    from vl2 import __version__
    from vl2.serve.app import ROUTERS

    app = FastAPI(title="vl2", version=__version__)
    for router in ROUTERS:
        app.include_router(router)
    described = app.openapi()
    objects = described["components"]["schemas"]
    parts = ["## Endpoints\n"]
    bodies = set()
    for path, methods in described["paths"].items():
        for method, about in methods.items():
            parts.append(
                f"### {method.upper()} {path}\n\n{plain(about.get('description', about.get('summary', '')))}\n"
            )
            content = about.get("requestBody", {}).get("content", {}).get("application/json", {})
            if body := content.get("schema", {}).get("$ref", "").rpartition("/")[2]:
                bodies.add(body)
                parts.append(properties_table(objects[body]))
    parts.append("## Objects\n")
    for name, schema in objects.items():
        if name not in bodies and not name.endswith("ValidationError") and schema.get("properties"):
            parts.append(f"### {name}\n\n{plain(schema.get('description', ''))}\n\n{properties_table(schema)}")
    return "\n".join(parts)


def properties_table(schema: Mapping[str, Any]) -> str:
    """Return the properties of a JSON schema as a table."""
    needed = schema.get("required", [])
    rows = [
        (f"`{name}`", type_of(about), "required" if name in needed else code(about.get("default")), bounds_of(about))
        for name, about in schema.get("properties", {}).items()
    ]
    return table(("field", "type", "default", ""), rows)


def type_of(schema: Mapping[str, Any]) -> str:
    """Return in words which values a JSON schema takes."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for key in ("anyOf", "oneOf"):
        if key in schema:
            kinds = [type_of(part) for part in schema[key] if part.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    return str(schema.get("type", "any value"))


def bounds_of(schema: Mapping[str, Any]) -> str:
    """Return the limits of a value, and what its schema says about it."""
    parts = [schema, *schema.get("anyOf", [])]
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "maxItems": "items, at most"}
    said = [
        f"{text} {part[key]:.15g}" for part in parts for key, text in words.items() if abs(part.get(key, 1e18)) < 1e18
    ]
    return plain(". ".join(filter(None, (", ".join(said), schema.get("description")))))


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def code(value: object) -> str:
    return "" if value in (None, "") else f"`{value}`"


def plain(text: str) -> str:
    """Return a text on one line, without what Markdown would take for tags."""
    return " ".join(re.sub(r"(`[^`]*`)|<", lambda match: match[1] or "&lt;", text).split())


def rest_lines(lines: list[str]) -> Iterator[str]:
    """Yield the lines of a docstring as reStructuredText: code in double backticks, signs of markup escaped."""
    for line in lines:
        pieces = re.split(r"`+([^`]+)`+", line)
        yield "".join(
            f"``{piece}``" if number % 2 else re.sub(r"([*|\\]|_\b)", r"\\\1", piece)
            for number, piece in enumerate(pieces)
        )


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""

    def read(_: Any, name: str, source: list[str]) -> None:
        source[0] = fill(source[0], DOCS / f"{name}.md")

    def convert(_: Any, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
        lines[:] = list(rest_lines(lines))

    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", convert)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
