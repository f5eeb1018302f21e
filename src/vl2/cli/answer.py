"""Code that `ask` and `describe` share: load, stream the answer to stdout, and draw its boxes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vl2.cli.flags import GenerateFlags, ModelFlags, OutputFlags, check_answer_length, option_fields, print_json
from vl2.cli.print_stream import print_stream
from vl2.errors import UserError
from vl2.paths import is_url, local_path

if TYPE_CHECKING:
    from vl2.infer.constraint import Constraint

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
    from vl2.infer.constraint_json import JsonSchema, check_whole

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
