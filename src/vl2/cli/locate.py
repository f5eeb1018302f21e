"""`vl2 locate`: where something is in an image, as boxes in pixels."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from vl2.cli.flags import GenerateFlags, Images, ModelFlags, OptionalFile, OutputFlags, open_images, print_json
from vl2.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Locate:
    """Print the boxes of what you describe: x0 y0 x1 y1 in pixels, then the label, one box a line.

    Examples:
      vl2 locate "the red mug" -i desk.jpg
      vl2 locate "the submit button" -i screen.png --json --draw boxes.png
    """

    query: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="QUERY")]
    """what to find"""
    images: Images = ()
    """path, URL or "-" for stdin"""
    draw: OptionalFile = None
    """write the image with the boxes to this file"""
    model: ModelFlags = field(default_factory=ModelFlags)
    generate: GenerateFlags = field(default_factory=GenerateFlags)
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        if len(self.images) != 1:
            raise UserError(f"locate takes one image (-i), got {len(self.images)}")
        from vl2.cli.answer import check_drawable, save_drawing
        from vl2.infer.prompts import locate_prompt, user_message
        from vl2.infer.vlm import Request

        check_drawable(self.draw, self.images)
        prompt = locate_prompt(self.query)
        images = open_images(self.images)
        options = self.generate.options()
        vlm = self.model.load(quiet=self.output.quiet)
        messages = [user_message(prompt, images)]
        reply = vlm.batch([Request(messages=messages, options=options)])[0]
        if self.output.json:
            print_json(reply.to_dict())
        else:
            for box in reply.boxes:
                print(*(f"{v:.1f}" for v in box.xyxy_px), " ".join(box.label.split()))
        if not reply.boxes and not self.output.quiet:
            said = " ".join(reply.text.split())
            print(f"vl2: nothing located; the model said: {said[:200]}", file=sys.stderr)
        if self.draw is not None:
            save_drawing(reply.draw(images[0]), self.draw, quiet=self.output.quiet)
