"""The commands `vl2 ask`, which answers one question, and `vl2 describe`, which describes an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from vl2.cli.flags import (
    GenerateFlags,
    Images,
    ModelFlags,
    OptionalFile,
    OptionalText,
    OutputFlags,
    open_images,
    read_schema,
    read_text,
)
from vl2.cli.log_flags import LogFlags
from vl2.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Ask a question about images, or about nothing.

    Examples:
      vl2 ask "What value does the chart show for Oslo?" -i examples/bars.png
      cat examples/word.png | vl2 ask "What does the image say?" -i - --json
      vl2 ask "What changed?" -i before.png -i after.png --model tiny
      vl2 ask "Read the receipt." -i receipt.png --json-schema receipt.schema.json --model tiny
    """

    question: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="QUESTION")]
    """what to ask; "-" reads it from stdin"""
    images: Images = ()
    """path, URL or "-" for stdin"""
    system: OptionalText = None
    """system prompt"""
    draw: OptionalFile = None
    """write the last image with the answer's boxes to this file"""
    json_schema: OptionalFile = None
    """make the answer JSON that fits the schema in this file"""
    model: ModelFlags = field(default_factory=ModelFlags)
    generate: GenerateFlags = field(default_factory=GenerateFlags)
    output: OutputFlags = field(default_factory=OutputFlags)
    log: LogFlags = field(default_factory=LogFlags)

    def run(self) -> None:
        from vl2.cli.answer import answer, check_drawable

        check_drawable(self.draw, self.images)
        images = open_images(self.images, is_stdin_taken=self.question == "-")
        question = read_text(self.question)
        if not question.strip():
            raise UserError("the question is empty: say what to ask")
        constraint = None if self.json_schema is None else read_schema(self.json_schema)
        answer(
            self.model,
            self.generate,
            self.output,
            question,
            images,
            log=self.log.start("ask", self.model.model),
            names=self.images,
            system=self.system,
            draw=self.draw,
            constraint=constraint,
        )


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
    log: LogFlags = field(default_factory=LogFlags)

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
        answer(
            self.model,
            self.generate,
            self.output,
            question,
            images,
            log=self.log.start("describe", self.model.model),
            names=self.images,
            draw=self.draw,
            constraint=constraint,
        )
