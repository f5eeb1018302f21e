"""The command `vl2 locate`, which prints the boxes of an object in an image, in pixels."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vl2.cli.flags import (
    GenerateFlags,
    Images,
    ModelFlags,
    OptionalFile,
    OutputFlags,
    check_answer_length,
    open_images,
    option_fields,
    print_json,
)
from vl2.cli.log_flags import LogFlags
from vl2.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from vl2.infer.reply import Reply


@dataclass(frozen=True, kw_only=True)
class Locate:
    """Print the boxes of what you describe: x0 y0 x1 y1 in pixels, then the label, one box a line.

    Several descriptions may be given, and the image is encoded once. Instead of a description, an object in another
    image can say what to find: --like and --box.

    Examples:
      vl2 locate "green house" -i examples/scene.png --draw boxes.png
      vl2 locate "the search field" "the menu" -i screen.png --points --model tiny
      vl2 locate "the submit button" -i screen.png --json --model tiny
      vl2 locate -i shelf.jpg --like mug.jpg --box 40,25,180,210 --model tiny
    """

    queries: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="QUERY ...", help_behavior_hint="")
    ] = ()
    """what to find"""
    images: Images = ()
    """path, URL or "-" for stdin"""
    draw: OptionalFile = None
    """write the image with the boxes to this file"""
    like: OptionalFile = None
    """find what is of the same kind as the object that --box marks in this image"""
    box: Annotated[str | None, tyro.conf.arg(metavar="X0,Y0,X1,Y1", help_behavior_hint="")] = None
    """the object in the --like image, in pixels"""
    points: bool = False
    """print the centers, x y in whole pixels, in place of the boxes: where to click"""
    constrained: bool = False
    """make malformed boxes impossible"""
    model: ModelFlags = field(default_factory=ModelFlags)
    generate: GenerateFlags = field(default_factory=GenerateFlags)
    output: OutputFlags = field(default_factory=OutputFlags)
    log: LogFlags = field(default_factory=LogFlags)

    def run(self) -> None:
        if len(self.images) != 1:
            raise UserError(f"locate takes one image (-i), got {len(self.images)}")
        from vl2.cli.answer import check_drawable, save_drawing
        from vl2.infer.constraint_boxes import WellFormedBoxes
        from vl2.infer.prompts import locate_prompt
        from vl2.infer.reply import draw_boxes
        from vl2.process.conversation import user_turn

        check_drawable(self.draw, self.images)
        reference = self._reference()
        (image,) = open_images(self.images)
        options = self.generate.options()
        if self.constrained:
            options = replace(options, constraint=WellFormedBoxes())
        log = self.log.start("locate", self.model.model)
        check_answer_length(self.model, self.generate, quiet=self.output.quiet)
        vlm = self.model.load(quiet=self.output.quiet)
        log.begin()
        if reference is None:
            replies = vlm.locate_all(self.queries, image, **option_fields(options))
        else:
            prompt, marked = reference
            replies = [vlm.chat(prompt, [marked, image], **option_fields(options))]
        if self.output.json:
            print_json(self._to_dict(replies))
        else:
            for line in self._lines(replies):
                print(line)
        self._warn(replies)
        for query, reply in zip(self.queries or ("",), replies, strict=True):
            if reference is None:
                turn, names = user_turn(locate_prompt(query, reply.kind), [image]), list(self.images)
            else:
                turn, names = user_turn(prompt, [marked, image]), [self.like or "", *self.images]
            log.add([turn], reply, option_fields(options), names=names)
        if self.draw is not None:
            boxes = [box for reply in replies for box in reply.boxes]
            save_drawing(draw_boxes(image, boxes), self.draw, quiet=self.output.quiet)

    def _reference(self) -> tuple[str, Image.Image] | None:
        """Return the prompt and the marked image of a search by example, None for one by description.

        Raise UserError for flags that do not fit together, or an empty description.
        """
        from vl2.infer.prompts import locate_like_prompt, locate_prompt, mark_object

        if (self.like is None) != (self.box is None):
            raise UserError("--like and --box belong together: an image, and the object in it")
        kind = self.model.kind(quiet=self.output.quiet)
        if self.like is None or self.box is None:
            for query in self.queries or ("",):
                locate_prompt(query, kind)
            return None
        if self.queries:
            raise UserError("locate takes either a description or --like with --box, got both")
        try:
            corners = [float(part) for part in self.box.split(",")]
        except ValueError:
            raise UserError(f"--box must be four numbers x0,y0,x1,y1 in pixels, got {self.box}") from None
        return locate_like_prompt(kind), mark_object(self.like, corners)

    def _to_dict(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """Return one reply as JSON, or for several queries each with its query."""
        if len(replies) == 1:
            return replies[0].to_dict()
        named = zip(self.queries, replies, strict=True)
        return {"answers": [{"query": query, **reply.to_dict()} for query, reply in named]}

    def _lines(self, replies: Sequence[Reply]) -> Iterator[str]:
        for reply in replies:
            for box in reply.boxes:
                numbers = [f"{v:.1f}" for v in box.xyxy_px]
                if self.points:
                    # The pixel in which the center lies; at the right or lower edge, the last one.
                    sides = reply.image_sizes[box.image_index]
                    numbers = [str(min(int(v), side - 1)) for v, side in zip(box.center_px, sides, strict=True)]
                yield " ".join([*numbers, *box.label.split()])

    def _warn(self, replies: Sequence[Reply]) -> None:
        """Say on stderr where an answer was cut off or has no box."""
        if self.output.quiet:
            return
        for number, reply in enumerate(replies):
            about = f"{self.queries[number]}: " if len(replies) > 1 else ""
            if reply.finish_reason == "length":
                num_tokens = reply.usage.completion_tokens
                print(f"vl2: {about}the answer was cut off after {num_tokens} tokens: boxes may be missing",
                      file=sys.stderr)  # fmt: skip
            if not reply.boxes:
                text = " ".join(reply.text.split())
                print(f"vl2: {about}nothing located; the model said: {text[:200]}", file=sys.stderr)
