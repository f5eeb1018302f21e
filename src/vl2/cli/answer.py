"""Print answers to stdout, write drawings, and check before a long task that its output files can be written."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vl2.cli.flags import GenerateFlags, ModelFlags, OutputFlags, check_answer_length, option_fields, print_json
from vl2.errors import UserError
from vl2.files import is_url, local_path

if TYPE_CHECKING:
    from PIL import Image

    from vl2.batch_job.item import BatchItem
    from vl2.cli.log_flags import CommandLog
    from vl2.infer.constraint import Constraint


def check_file(path: Path, flag: str) -> None:
    """Raise UserError unless a file can be written at `path`, if necessary after creating its folders."""
    if path.is_dir():
        raise UserError(f"{flag} must name a file, and {path} is a folder")
    if path.exists():
        _check_writable(path, path, flag)
    else:
        check_folder(path.parent, flag, whole=path)


def check_folder(folder: Path, flag: str, *, whole: Path | None = None) -> None:
    """Raise UserError unless files can be written into a folder, which need not exist yet."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{flag}: cannot write {whole or folder}: {there} is not a folder")
    _check_writable(there, whole or folder, flag)


def check_picture_folder(name: str, flag: str, ids: Iterable[str], inputs: Iterable[Path]) -> None:
    """Raise UserError unless pictures named after items can be written into a folder without replacing an input."""
    from vl2.batch_job.exports import file_stems

    folder = local_path(name)
    check_folder(folder, flag)
    given = {picture.resolve() for picture in inputs}
    for item, stem in file_stems(ids).items():
        if any((folder / f"{written}.png").resolve() in given for written in (stem, f"{stem}-1")):
            raise UserError(f"{flag} {name} would write over the picture {item}: name another folder")


def input_pictures(items: Sequence[BatchItem]) -> Iterator[Path]:
    """Yield the paths of the input images, without opening them."""
    for item in items:
        if "page" in item.about:
            continue
        with contextlib.suppress(UserError):
            yield from (Path(source) for source in item.read().images if isinstance(source, str))


def _check_writable(there: Path, path: Path, flag: str) -> None:
    if not os.access(there, os.W_OK):
        raise UserError(f"{flag}: cannot write {path}: no permission")


def print_stream(pieces: Iterable[str]) -> None:
    """Print an answer piece by piece, then a newline. The output is the same as that of `print(reply.text)`."""
    for piece in strip_stream(pieces):
        print(piece, end="", flush=True)
    print(flush=True)


def strip_stream(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of a text without its leading and trailing white space."""
    held = ""  # white space that is dropped unless more text follows
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


# Formats that every build of Pillow can write. It registers more, but cannot write all of them.
DRAWN_AS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def answer(
    model: ModelFlags,
    generate: GenerateFlags,
    output: OutputFlags,
    question: str,
    images: Sequence[Image.Image],
    *,
    log: CommandLog,
    names: Sequence[str],
    system: str | None = None,
    draw: str | None = None,
    constraint: Constraint | None = None,
) -> None:
    """Answer one question and print the answer: text as a stream, JSON when it is complete.

    `names` are the paths or URLs of the images, for the log.
    """
    from vl2.infer.constraint import JsonSchema, check_whole
    from vl2.process.conversation import one_question

    options = option_fields(replace(generate.options(), constraint=constraint))
    check_answer_length(model, generate, quiet=output.quiet)
    vlm = model.load(quiet=output.quiet)
    log.begin()
    # Incomplete JSON is of no use, so it is not streamed.
    if output.json or isinstance(constraint, JsonSchema):
        reply = vlm.chat(question, images, system=system, **options)
        try:
            check_whole(constraint, reply.text, reply.finish_reason, reply.usage.completion_tokens)
            if output.json:
                print_json(reply.to_dict())
            else:
                print(reply.text, flush=True)
        finally:
            log.add(one_question(question, images, system), reply, options, names=names)
    else:
        stream = vlm.stream(question, images, system=system, **options)
        print_stream(stream)
        reply = stream.reply
        log.add(one_question(question, images, system), reply, options, names=names)
    if draw is not None:
        save_drawing(reply.draw(images[-1]), draw, quiet=output.quiet)


def check_drawable(draw: str | None, images: Sequence[str]) -> None:
    """Raise UserError, before the model is loaded, if the drawing could not be written afterwards."""
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
    """Write an image in the format of the path's suffix. Raise UserError if that fails."""
    try:
        picture.save(local_path(path))
    except (OSError, ValueError) as error:  # ValueError: the image is too large for the format
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    if not quiet:
        print(f"vl2: drawn to {path}", file=sys.stderr)
