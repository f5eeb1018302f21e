"""The command `vl2 locate`, which prints the boxes of an object in an image, in pixels."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

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
from vl2.errors import UserError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Locate:
    """Print the boxes of what you describe: x0 y0 x1 y1 in pixels, then the label, one box a line.

    Instead of a description, an object in another image can say what to find: --like and --box.

    Examples:
      vl2 locate "green house" -i examples/scene.png --draw boxes.png
      vl2 locate "the submit button" -i screen.png --json --model tiny
      vl2 locate -i shelf.jpg --like mug.jpg --box 40,25,180,210 --model tiny
    """

    query: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="QUERY", help_behavior_hint="")] = ""
    """what to find"""
    images: Images = ()
    """path, URL or "-" for stdin"""
    draw: OptionalFile = None
    """write the image with the boxes to this file"""
    like: OptionalFile = None
    """find what is of the same kind as the object that --box marks in this image"""
    box: Annotated[str | None, tyro.conf.arg(metavar="X0,Y0,X1,Y1", help_behavior_hint="")] = None
    """the object in the --like image, in pixels"""
    constrained: bool = False
    """make malformed boxes impossible"""
    model: ModelFlags = field(default_factory=ModelFlags)
    generate: GenerateFlags = field(default_factory=GenerateFlags)
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        if len(self.images) != 1:
            raise UserError(f"locate takes one image (-i), got {len(self.images)}")
        from vl2.cli.answer import check_drawable, save_drawing
        from vl2.infer.constraint_boxes import WellFormedBoxes

        check_drawable(self.draw, self.images)
        prompt, references = self._prompt()
        images = [*references, *open_images(self.images)]
        options = self.generate.options()
        if self.constrained:
            options = replace(options, constraint=WellFormedBoxes())
        check_answer_length(self.model, self.generate, quiet=self.output.quiet)
        vlm = self.model.load(quiet=self.output.quiet)
        reply = vlm.chat(prompt, images, **option_fields(options))
        if self.output.json:
            print_json(reply.to_dict())
        else:
            for box in reply.boxes:
                print(*(f"{v:.1f}" for v in box.xyxy_px), " ".join(box.label.split()))
        if reply.finish_reason == "length" and not self.output.quiet:
            num_tokens = reply.usage.completion_tokens
            print(f"vl2: the answer was cut off after {num_tokens} tokens: boxes may be missing", file=sys.stderr)
        if not reply.boxes and not self.output.quiet:
            text = " ".join(reply.text.split())
            print(f"vl2: nothing located; the model said: {text[:200]}", file=sys.stderr)
        if self.draw is not None:
            save_drawing(reply.draw(images[-1]), self.draw, quiet=self.output.quiet)

    def _prompt(self) -> tuple[str, list[Image.Image]]:
        """Return the prompt, and the reference image that precedes the searched image, if any."""
        from vl2.infer.prompts import locate_like_prompt, locate_prompt, mark_object

        if (self.like is None) != (self.box is None):
            raise UserError("--like and --box belong together: an image, and the object in it")
        if self.like is None or self.box is None:
            return locate_prompt(self.query, self.model.kind(quiet=self.output.quiet)), []
        if self.query:
            raise UserError("locate takes either a description or --like with --box, got both")
        try:
            corners = [float(part) for part in self.box.split(",")]
        except ValueError:
            raise UserError(f"--box must be four numbers x0,y0,x1,y1 in pixels, got {self.box}") from None
        return locate_like_prompt(self.model.kind(quiet=self.output.quiet)), [mark_object(self.like, corners)]
