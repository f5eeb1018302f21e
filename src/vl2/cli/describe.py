"""`vl2 describe`: what an image shows, on request with boxes around what is named."""

from __future__ import annotations

from dataclasses import dataclass, field

from vl2.cli.flags import GenerateFlags, Images, ModelFlags, OptionalFile, OutputFlags, open_images
from vl2.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Describe:
    """Describe an image.

    Examples:
      vl2 describe -i photo.jpg --model tiny
      vl2 describe -i photo.jpg --grounded --draw boxes.png --model tiny
    """

    images: Images = ()
    """path, URL or "-" for stdin"""
    grounded: bool = False
    """ask for a box around everything that is named"""
    constrained: bool = False
    """make malformed boxes impossible"""
    draw: OptionalFile = None
    """write the image with the boxes to this file"""
    model: ModelFlags = field(default_factory=ModelFlags)
    generate: GenerateFlags = field(default_factory=GenerateFlags)
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        if len(self.images) != 1:
            raise UserError(f"describe takes one image (-i), got {len(self.images)}")
        from vl2.cli.answer import answer, check_drawable
        from vl2.infer.constraint_boxes import WellFormedBoxes
        from vl2.infer.prompts import describe_prompt

        check_drawable(self.draw, self.images)
        images = open_images(self.images)
        question = describe_prompt(grounded=self.grounded, kind=self.model.kind(quiet=self.output.quiet))
        constraint = WellFormedBoxes() if self.constrained else None
        answer(self.model, self.generate, self.output, question, images, draw=self.draw, constraint=constraint)
