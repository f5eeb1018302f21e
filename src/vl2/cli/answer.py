"""Write answers and drawings: stream text to stdout, and check before the work that a file can be written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vl2.cli.flags import GenerateFlags, ModelFlags, OutputFlags, check_answer_length, option_fields, print_json
from vl2.errors import UserError
from vl2.files import is_url, local_path

if TYPE_CHECKING:
    from vl2.infer.constraint import Constraint


def check_file(path: Path, flag: str) -> None:
    """Raise UserError unless a file can be written here, its folders made if need be."""
    if path.is_dir():
        raise UserError(f"{flag} must name a file, and {path} is a folder")
    if path.exists():
        _check_writable(path, path, flag)
    else:
        check_folder(path.parent, flag, whole=path)


def check_folder(folder: Path, flag: str, *, whole: Path | None = None) -> None:
    """Raise UserError unless files can be written into a folder, which may be one that is still to be made."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{flag}: cannot write {whole or folder}: {there} is not a folder")
    _check_writable(there, whole or folder, flag)


def _check_writable(there: Path, path: Path, flag: str) -> None:
    if not os.access(there, os.W_OK):
        raise UserError(f"{flag}: cannot write {path}: no permission")


def print_stream(pieces: Iterable[str]) -> None:
    """Print an answer as it comes, and a newline: in all what `print(reply.text)` would print."""
    for piece in strip_stream(pieces):
        print(piece, end="", flush=True)
    print(flush=True)


def strip_stream(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of a text without its leading and trailing blanks."""
    held = ""  # blanks that may turn out to be the last
    has_begun = False
    for piece in pieces:
        text = held + piece
        kept = text.rstrip()
        held = text[len(kept) :]
        kept = kept if has_begun else kept.lstrip()
        if kept:
            has_begun = True
            yield kept
        elif not has_begun:
            held = ""


# Formats that Pillow writes everywhere. It registers more, some of which it cannot write.
DRAWN_AS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def answer(
    model: ModelFlags,
    generate: GenerateFlags,
    output: OutputFlags,
    question: str,
    images: Sequence[Image.Image],
    *,
    system: str | None = None,
    draw: str | None = None,
    constraint: Constraint | None = None,
) -> None:
    """Answer one question on stdout: streamed as text, or as JSON at the end."""
    from vl2.infer.constraint import JsonSchema, check_whole

    options = option_fields(replace(generate.options(), constraint=constraint))
    check_answer_length(model, generate, quiet=output.quiet)
    vlm = model.load(quiet=output.quiet)
    # JSON is printed when it is complete; only text is useful while it comes.
    if output.json or isinstance(constraint, JsonSchema):
        reply = vlm.chat(question, images, system=system, **options)
        check_whole(constraint, reply.text, reply.finish_reason, reply.usage.completion_tokens)
        if output.json:
            print_json(reply.to_dict())
        else:
            print(reply.text, flush=True)
    else:
        stream = vlm.stream(question, images, system=system, **options)
        print_stream(stream)
        reply = stream.reply
    if draw is not None:
        save_drawing(reply.draw(images[-1]), draw, quiet=output.quiet)


def check_drawable(draw: str | None, images: Sequence[str]) -> None:
    """Check before the work that the drawing can be written after it."""
    if draw is None:
        return
    if not images:
        raise UserError("--draw needs an image (-i)")
    path = local_path(draw).absolute()
    if path.suffix.lower() not in DRAWN_AS:
        raise UserError(f"--draw must name a picture ({', '.join(DRAWN_AS)}), got {draw}")
    if path.is_dir():
        raise UserError(f"--draw must name a file, and {draw} is a folder")
    if any(not is_url(name) and name != "-" and Path(name).resolve() == path.resolve() for name in images):
        raise UserError(f"--draw {draw} would write over the image itself: name another file")
    if not path.parent.is_dir():
        raise UserError(f"--draw: no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--draw: {draw} cannot be written")


def save_drawing(picture: Image.Image, path: str, *, quiet: bool) -> None:
    try:
        picture.save(local_path(path))
    except (OSError, ValueError) as error:  # ValueError: more pixels than the format holds
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    if not quiet:
        print(f"vl2: drawn to {path}", file=sys.stderr)
