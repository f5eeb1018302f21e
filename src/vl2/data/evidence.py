"""Where in its images an answer is to be seen: which tokens of a sample rest on which of its visual tokens.

A record says it: an answer gives the boxes of objects (`{box:k}`), or names objects as its evidence. From there on
in the question where the object is named, and all along the answer, tokens rest on the visual tokens that lie in the
object's boxes; between the brackets of one box, on those in that box alone.

S tokens of a sample, n of them with evidence, T visual tokens of an image with newlines and the separator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vl2.data.record import PLACEHOLDER, BoxPx, Labelled, Message, Record
from vl2.grid import Grid, num_visual_tokens
from vl2.model.layout import image_order
from vl2.process.sample import Sample
from vl2.process.tiles import fit_inside
from vl2.process.tiling import Size
from vl2.process.tokenizer import Tokenizer

LEAST_COVERED = 0.3  # of a visual token's square or of the box, whichever is smaller, for the token to show the box

Rests = tuple[int, list[int]]  # a token, and the visual tokens on which it rests


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Pairs of a token and a visual token on which it rests, by their places in the sequence."""

    token_n: Tensor  # int64 [n], ascending, none twice
    pairs_m2: Tensor  # int64 [m, 2]: a row of `token_n`, and the place of a visual token

    @classmethod
    def of(cls, rests: Sequence[Rests]) -> Evidence:
        rows = sorted(rests)
        pairs = [(row, place) for row, (_, places) in enumerate(rows) for place in places]
        return cls(
            token_n=torch.tensor([token for token, _ in rows], dtype=torch.int64),
            pairs_m2=torch.tensor(pairs, dtype=torch.int64).view(-1, 2),
        )

    def __len__(self) -> int:
        return len(self.token_n)

    def to(self, device: torch.device | str) -> Evidence:
        return Evidence(token_n=self.token_n.to(device), pairs_m2=self.pairs_m2.to(device))


def join(parts: Sequence[tuple[int, Evidence]]) -> Evidence:
    """Lay the evidence of samples end to end; each comes with the place of its sample's first token."""
    tokens, pairs, row = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, 2, dtype=torch.int64)], 0
    for first, evidence in parts:
        tokens.append(evidence.token_n + first)
        pairs.append(evidence.pairs_m2 + torch.tensor([row, first]))
        row += len(evidence)
    return Evidence(token_n=torch.cat(tokens), pairs_m2=torch.cat(pairs))


@lru_cache(maxsize=1024)
def shown_squares(size: Size, grid: Grid, side: int, tile_px: int) -> Tensor:
    """Return the part of an image that each of its visual tokens shows, (x0, y0, x1, y1) in its pixels, [T, 4].

    Newlines and the separator show nothing and have squares without area; so do tokens of padding.
    """
    views = [_view(size, (1, 1), side, tile_px)]
    if grid != (1, 1):
        views.append(_view(size, grid, side, tile_px))
    squares = torch.cat((*views, torch.zeros(2, 4)))
    order = image_order(grid, side)
    # The order speaks of tiles one after another, a view is one picture: both number the tile's tokens row by row.
    shown: Tensor = squares[torch.where(order >= 0, order, len(squares) - 1)]
    return shown


def _view(size: Size, grid: Grid, side: int, tile_px: int) -> Tensor:
    """Return the squares of a view in the order of its tiles, [columns * rows * side * side, 4]."""
    columns, rows = grid
    resized, offset = fit_inside(size, (columns * tile_px, rows * tile_px))
    if min(resized) == 0:
        return torch.zeros(columns * rows * side * side, 4)
    edges = [torch.arange(count * side + 1) * (tile_px / side) for count in grid]
    # From the canvas to the image's own pixels, cut at its borders.
    x, y = (
        ((edge - offset[axis]) * (size[axis] / resized[axis])).clamp(0, size[axis]) for axis, edge in enumerate(edges)
    )
    top, left = torch.meshgrid(y[:-1], x[:-1], indexing="ij")
    bottom, right = torch.meshgrid(y[1:], x[1:], indexing="ij")
    squares = torch.stack((left, top, right, bottom), dim=-1)
    return squares.view(rows, side, columns, side, 4).transpose(1, 2).reshape(-1, 4)


def find_evidence(record: Record, sample: Sample, tokenizer: Tokenizer, tile_px: int) -> Evidence:
    """Return what a sample's tokens rest on, where its record says so. None of what does not speak of images."""
    answers = [message for message in record.messages if message.role == "assistant"]
    spans = list(_spans(sample, tokenizer))
    if not record.objects or len(spans) != len(answers):
        return Evidence.of([])
    finder = _Finder(record, sample, tokenizer, tile_px)
    found: dict[int, list[int]] = {}
    for message, (question, answer) in zip(answers, spans, strict=True):
        found.update(finder.of_turn(message, question, answer))
    return Evidence.of([(token, places) for token, places in found.items() if places])


def _spans(sample: Sample, tokenizer: Tokenizer) -> Iterator[tuple[range, range]]:
    """Yield each turn's question, to before the assistant's token, and its answer, from the colon on, without eos."""
    ids = sample.input_ids.tolist()
    users = [place for place, id in enumerate(ids) if id == tokenizer.user_id]
    for user, following in zip(users, [*users[1:], len(ids)], strict=True):
        assistant = ids.index(tokenizer.assistant_id, user)
        yield range(user, assistant), range(assistant + 1, following - (ids[following - 1] == tokenizer.eos_id))


class _Finder:
    """The visual tokens of one sample, and what boxes they show."""

    def __init__(self, record: Record, sample: Sample, tokenizer: Tokenizer, tile_px: int) -> None:
        self._record, self._tokenizer = record, tokenizer
        self._ids = sample.input_ids.tolist()
        side = sample.tokens_per_side
        lengths = [num_visual_tokens(grid, side) for grid in sample.grid_list]
        self._slots = sample.image_mask.nonzero().squeeze(1).split(lengths)
        self._squares = [
            shown_squares(size, grid, side, tile_px)
            for size, grid in zip(sample.image_sizes, sample.grid_list, strict=True)
        ]

    def of_turn(self, message: Message, question: range, answer: range) -> dict[int, list[int]]:
        text = "".join(part.text or "" for part in message.parts)
        given = [self._record.objects[int(k)] for k in PLACEHOLDER.findall(text)]
        evidence = [self._record.objects[k] for k in message.evidence]
        found = {token: places for labelled in (*given, *evidence) for token, places in self._asked(labelled, question)}
        if evidence:
            places = sorted({place for labelled in evidence for place in self._places(labelled, labelled.boxes_px)})
            found.update((token, places) for token in answer[:-1])
        return found | dict(self._told(given, answer))

    def _asked(self, labelled: Labelled, question: range) -> Iterator[Rests]:
        """Yield the tokens of a question from where an object has been named."""
        named = self._end_of(labelled.label, question)
        if named is not None:
            places = self._places(labelled, labelled.boxes_px)
            yield from ((token, places) for token in range(named, question.stop))

    def _told(self, given: Sequence[Labelled], answer: range) -> Iterator[Rests]:
        """Yield the tokens of the boxes that an answer gives, from the last of the name before them."""
        remaining, depth, is_box, number = iter(given), 0, False, -1
        labelled: Labelled | None = None
        open_ref, close_ref = (self._tokenizer.special_ids[tag] for tag in ("<|ref|>", "<|/ref|>"))
        close_det = self._tokenizer.special_ids["<|/det|>"]
        for token in answer:
            id = self._ids[token]
            if id == open_ref:
                labelled, number, is_box = next(remaining, None), -1, False
                continue
            if labelled is None:
                continue
            if id == close_det:
                labelled = None
                continue
            if id == close_ref:
                is_box, depth = True, 0
                yield token - 1, self._places(labelled, labelled.boxes_px)
            if not is_box:
                continue
            written = self._tokenizer.token_bytes(id, skip_special=True).decode("ascii", "ignore")
            for mark in written:
                depth += (mark == "[") - (mark == "]")
                number += mark == "[" and depth == 2
            boxes = labelled.boxes_px[number : number + 1] if number >= 0 else labelled.boxes_px
            yield token, self._places(labelled, boxes)

    def _end_of(self, label: str, question: range) -> int | None:
        """Return the token of a question with which a name ends, the last time that it is there."""
        written = b""
        ends = []
        for token in question:
            is_visual = self._ids[token] == self._tokenizer.image_id
            written += b"" if is_visual else self._tokenizer.token_bytes(self._ids[token], skip_special=True)
            ends.append(len(written))
        at = written.rfind(label.encode())
        if at < 0:
            return None
        end = at + len(label.encode())
        return next(token for token, reached in zip(question, ends, strict=True) if reached >= end)

    def _places(self, labelled: Labelled, boxes_px: Sequence[BoxPx]) -> list[int]:
        """Return the places of the visual tokens that show any of the boxes."""
        squares_T4 = self._squares[labelled.image]
        shows_T = torch.zeros(len(squares_T4), dtype=torch.bool)
        for box in boxes_px:
            covered_T = _covered(squares_T4, box)
            # A small box may lie on the corner of four squares: then the one that has most of it shows it.
            shows_T |= covered_T >= min(LEAST_COVERED, max(float(covered_T.max()), 1e-6))
        places: list[int] = self._slots[labelled.image][shows_T].tolist()
        return places


def _covered(squares_T4: Tensor, box: BoxPx) -> Tensor:
    """Return the area that squares share with a box, over the smaller of the two; 0 for what has no area. [T]."""
    box_4 = torch.tensor(box)
    sides_T2 = (torch.minimum(squares_T4[:, 2:], box_4[2:]) - torch.maximum(squares_T4[:, :2], box_4[:2])).clamp(min=0)
    area_T = (squares_T4[:, 2:] - squares_T4[:, :2]).prod(dim=1)
    smaller_T = area_T.clamp(max=float((box_4[2:] - box_4[:2]).prod()))
    return torch.where(smaller_T > 0, sides_T2.prod(dim=1) / smaller_T.clamp(min=1e-9), 0.0)
