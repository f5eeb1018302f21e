"""Report how an image is cut: its canvas, grid, tiles and tokens, as text, as data and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vl2.errors import UserError
from vl2.grid import UNTILED, Grid, ImageLayout
from vl2.process.pixels import Canvas, draw_canvas, fit_inside
from vl2.process.processor import Processor
from vl2.process.tiling import Size, scaled

DIAGRAM_COLUMNS, DIAGRAM_ROWS = 6, 3  # characters of the diagram per tile
LINE, PICTURE_EDGE = "#D55E00", "#0072B2"


@dataclass(frozen=True, kw_only=True)
class TileReport:
    """How one image of a conversation is cut. Sizes are (width, height) in pixels."""

    size: Size
    drawn_on: Canvas  # the canvas that the tiles are cut from, or without tiles that of the overview
    overview: Canvas | None  # canvas of an overview that is encoded separately, or None
    grid: Grid
    resized: Size  # size of the picture on the canvas; a side of a very thin picture is 0
    offset: Size
    layout: ImageLayout
    padding_color: tuple[int, int, int]
    image_scale: float  # the grid is chosen as for an image so many times as large

    @classmethod
    def of(cls, image: Image.Image, processor: Processor) -> TileReport:
        """Return the report of an image that is the only one of its conversation."""
        return cls.plan([[image.size]], processor)[0]

    @classmethod
    def plan(cls, sizes: Sequence[Sequence[Size]], processor: Processor) -> list[TileReport]:
        """Return the reports of all images of a conversation, given the sizes of the images of each message.

        Raise UserError for an image without pixels, or if the images do not fit into the tiling budget.
        """
        for width, height in (size for message in sizes for size in message):
            if width < 1 or height < 1:
                raise UserError(f"the sides of an image must be at least 1 px, got {width} x {height}")
        grids = processor.choose_grids(sizes)
        flat = [size for message in sizes for size in message]
        return [cls._of_grid(size, grid, processor) for size, grid in zip(flat, grids, strict=True)]

    @classmethod
    def _of_grid(cls, size: Size, grid: Grid, processor: Processor) -> TileReport:
        plan = processor.cutter.plan(grid)
        drawn_on = (plan.tiles or plan.overviews)[-1]
        resized, offset = fit_inside(size, drawn_on.size) if drawn_on.fit == "pad" else (drawn_on.size, (0, 0))
        return cls(
            size=size,
            drawn_on=drawn_on,
            overview=plan.overviews[0] if plan.overviews else None,
            grid=grid,
            resized=resized,
            offset=offset,
            layout=processor.cutter.layout,
            padding_color=processor.config.padding_color,
            image_scale=processor.config.image_scale,
        )

    @property
    def canvas(self) -> Size:
        return self.drawn_on.size

    @property
    def tile_px(self) -> int:
        return self.drawn_on.view_px

    @property
    def is_visible(self) -> bool:
        """Whether the model sees anything of the picture."""
        return min(self.resized) > 0

    def to_dict(self) -> dict[str, Any]:
        layout, grid = self.layout, self.grid
        overview = layout.num_overview_tokens
        return {
            "size": list(self.size),
            "image_scale": self.image_scale,
            "canvas": list(self.canvas),
            "grid": list(self.grid),
            "resized": list(self.resized),
            "offset": list(self.offset),
            "tiles_encoded": layout.num_tiles(grid) + layout.num_overviews(grid),
            "visual_tokens": layout.num_tokens(grid),
            "global_tokens": overview,
            "local_tokens": layout.num_tokens(grid) - overview - 1,
        }

    def to_text(self) -> str:
        values = self.to_dict()
        columns, rows = self.grid
        if self.overview is not None:
            crops = "" if self.grid == UNTILED else f"{columns} x {rows} crops of {self.tile_px} px, then "
            views = f"views   {crops}the whole in {self.overview.view_px} px"
        else:
            cut = f"{columns} x {rows} local tiles + 1 global view"
            cut = "1 tile, seen as both views" if self.grid == UNTILED else cut
            views = f"tiles   {values['tiles_encoded']} of {self.tile_px} px: {cut}"
        hidden = (
            () if self.is_visible else ("note    the picture is too thin for this model: nothing of it is visible",)
        )
        return "\n".join(
            (
                f"image   {self.size[0]} x {self.size[1]} px{self._about_scale()}",
                f"canvas  {self.canvas[0]} x {self.canvas[1]} px, the picture {self.resized[0]} x {self.resized[1]}"
                f" at ({self.offset[0]}, {self.offset[1]})",
                *hidden,
                views,
                f"tokens  {values['visual_tokens']}: {values['global_tokens']} global + 1 separator"
                f" + {values['local_tokens']} local",
                "",
                *self.diagram(),
            )
        )

    def _about_scale(self) -> str:
        if self.image_scale == 1:
            return ""
        width, height = scaled(self.size, self.image_scale)
        return f", tiled like {width} x {height} px (image scale {self.image_scale})"

    def diagram(self) -> list[str]:
        """Return lines that show the grid in characters: '#' for the picture, '.' for padding."""
        columns, rows = self.grid
        width, height = columns * DIAGRAM_COLUMNS, rows * DIAGRAM_ROWS
        (x0, y0), (w, h) = self.offset, self.resized

        def cell(column: int, row: int) -> str:
            x, y = (column + 0.5) / width * self.canvas[0], (row + 0.5) / height * self.canvas[1]
            return "#" if x0 <= x < x0 + w and y0 <= y < y0 + h else "."

        border = "+" + ("-" * DIAGRAM_COLUMNS + "+") * columns
        lines = [border]
        for row in range(height):
            cells = [cell(column, row) for column in range(width)]
            parts = ["".join(cells[i : i + DIAGRAM_COLUMNS]) for i in range(0, width, DIAGRAM_COLUMNS)]
            lines.append("|" + "|".join(parts) + "|")
            if row % DIAGRAM_ROWS == DIAGRAM_ROWS - 1:
                lines.append(border)
        return lines

    def draw(self, image: Image.Image) -> Image.Image:
        """Return the canvas as the model gets it, with outlined and numbered tiles and a caption below."""
        canvas = draw_canvas(image, self.drawn_on, self.padding_color)
        pen = ImageDraw.Draw(canvas)
        font = ImageFont.load_default(size=max(12, self.tile_px // 16))
        x0, y0 = self.offset
        if self.is_visible:
            pen.rectangle((x0, y0, x0 + self.resized[0] - 1, y0 + self.resized[1] - 1), outline=PICTURE_EDGE, width=2)
        for index in range(self.grid[0] * self.grid[1]):
            x, y = index % self.grid[0] * self.tile_px, index // self.grid[0] * self.tile_px
            pen.rectangle((x, y, x + self.tile_px - 1, y + self.tile_px - 1), outline=LINE, width=2)
            number = str(index + 1)
            left, top, right, bottom = pen.textbbox((x + 8, y + 6), number, font=font)
            pen.rectangle((left - 4, top - 4, right + 4, bottom + 4), fill=LINE)
            pen.text((x + 8, y + 6), number, fill="white", font=font)
        return _with_caption(canvas, self._caption(), font)

    def _caption(self) -> str:
        values = self.to_dict()
        return (
            f"{self.size[0]} x {self.size[1]} on {self.canvas[0]} x {self.canvas[1]}, "
            f"{values['tiles_encoded']} tiles, {values['visual_tokens']} tokens"
        )


def _with_caption(picture: Image.Image, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    left, top, right, bottom = font.getbbox(text)
    margin = 8
    width = max(picture.width, round(right - left) + 2 * margin)
    out = Image.new("RGB", (width, picture.height + round(bottom - top) + 2 * margin), "white")
    out.paste(picture, (0, 0))
    ImageDraw.Draw(out).text((margin - left, picture.height + margin - top), text, fill="black", font=font)
    return out
