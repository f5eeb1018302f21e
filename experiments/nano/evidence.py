"""Where in its images, or in its text, an answer stands: what each token of a sample should attend to.

A record says it: an answer gives the boxes of objects (`{box:k}`), or names objects as its evidence. From there on
in the question where an object is named, until the next one is, and all along the answer, tokens rest on the visual
tokens that lie in the object's boxes; between the brackets of one box, on those in that box alone. Where a text is
named that has a box for each of its characters, the tokens of its name rest on their own ones, and the last on all.

What must be found before the answer can be read, and is not named by the question, is what the assistant's token
rests on: the largest number of a text, or the highest bar of a chart without printed values.

Evidence that the answer repeats, with a box for each of its characters, is read: the token that tells the next
character rests on that one's box. The rest of the answer then rests on nothing.

Where a bar is measured whose value is not printed, its name is found in the question and the answer rests on the bar.

What an answer reads or measures and what its question names are bound to each other where they lie in one row or
column: the tokens that show one of them rest on the other, as far as that comes before. So a value has its name before
it is asked for. A number and whose it is, where an answer gives both, are bound in the same way.

Every box weighs alike, whatever its size. Where evidence is named, none of it is read and no boxes are given, the
first token of the sample weighs as much as one box: the more there is, the less falls on it, so that attention tells
how many there are; of what is not there at all, everything.

Without images, an answer is looked for in the lines of text before the first question, or in the question itself. There
every character has a place, as those of a text in an image have boxes.

S tokens of a sample, n of them with evidence, g boxes (and first tokens) on which they rest, T visual tokens of an
image with newlines and the separator.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from experiments.nano.draw.extremes import parts_of
from experiments.nano.draw.fields import Place, compared_in, fields_of
from vl2.data.record import PLACEHOLDER, Labeled, Message, Record
from vl2.grid import UNTILED, Grid, num_visual_tokens
from vl2.process.pixels import fit_inside
from vl2.process.sample import Sample
from vl2.process.tiling import Size
from vl2.process.tokenizer import Tokenizer

LEAST_COVERED = 0.3  # of a visual token's square or of the box, whichever is smaller, for the token to show the box

Rests = tuple[int, list[list[int]]]  # a token, and for each box the places that show it


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Tokens, for each of them groups of places that weigh alike, and the places in each group."""

    token_n: Tensor  # int64 [n], places in the sequence, ascending, none twice
    row_g: Tensor  # int64 [g], the row of `token_n` that a group is of, ascending
    pairs_m2: Tensor  # int64 [m, 2]: a group, ascending, and a place in the sequence, of the same document

    @classmethod
    def of(cls, rests: Sequence[Rests]) -> Evidence:
        rows = sorted(rests)
        groups = [(row, places) for row, (_, groups) in enumerate(rows) for places in groups]
        pairs = [(group, place) for group, (_, places) in enumerate(groups) for place in places]
        return cls(
            token_n=torch.tensor([token for token, _ in rows], dtype=torch.int64),
            row_g=torch.tensor([row for row, _ in groups], dtype=torch.int64),
            pairs_m2=torch.tensor(pairs, dtype=torch.int64).view(-1, 2),
        )

    def __len__(self) -> int:
        return len(self.token_n)

    def to(self, device: torch.device | str) -> Evidence:
        return Evidence(token_n=self.token_n.to(device), row_g=self.row_g.to(device), pairs_m2=self.pairs_m2.to(device))


def join(parts: Sequence[tuple[int, Evidence]]) -> Evidence:
    """Lay the evidence of samples end to end; each comes with the place of its sample's first token."""
    joined = Evidence.of([])
    for first, evidence in parts:
        joined = Evidence(
            token_n=torch.cat((joined.token_n, evidence.token_n + first)),
            row_g=torch.cat((joined.row_g, evidence.row_g + len(joined))),
            pairs_m2=torch.cat((joined.pairs_m2, evidence.pairs_m2 + torch.tensor([len(joined.row_g), first]))),
        )
    return joined


@lru_cache(maxsize=1024)
def shown_squares(size: Size, grid: Grid, side: int, tile_px: int) -> Tensor:
    """Return the part of an image that each of its visual tokens shows, (x0, y0, x1, y1) in its pixels, [T, 4].

    Newlines and the separator show nothing and have squares without area; so do tokens of padding.
    """
    views = _view(size, UNTILED, side, tile_px), torch.zeros(1, 4), _view(size, grid, side, tile_px)
    squares = torch.cat(views)
    assert len(squares) == num_visual_tokens(grid, side)
    return squares


def _view(size: Size, grid: Grid, side: int, tile_px: int) -> Tensor:
    """Return the squares of a view row by row, each row with its newline."""
    columns, rows = grid
    resized, offset = fit_inside(size, (columns * tile_px, rows * tile_px))
    squares = torch.zeros(rows * side, columns * side + 1, 4)
    if min(resized) > 0:
        edges = [torch.arange(count * side + 1) * (tile_px / side) for count in grid]
        # From the canvas to the image's own pixels, cut at its borders.
        x, y = (
            ((edge - offset[axis]) * (size[axis] / resized[axis])).clamp(0, size[axis])
            for axis, edge in enumerate(edges)
        )
        top, left = torch.meshgrid(y[:-1], x[:-1], indexing="ij")
        bottom, right = torch.meshgrid(y[1:], x[1:], indexing="ij")
        squares[:, :-1] = torch.stack((left, top, right, bottom), dim=-1)
    return squares.flatten(0, 1)


def find_evidence(record: Record, sample: Sample, tokenizer: Tokenizer, tile_px: int) -> Evidence:
    """Return what a sample's tokens rest on, where its record says so or its text holds the answer."""
    answers = [message for message in record.messages if message.role == "assistant"]
    if not answers or (record.images and not record.objects):
        return Evidence.of([])
    spans = list(_spans(sample, tokenizer))
    if len(spans) != len(answers):
        return Evidence.of([])
    finder = (_Finder if record.images else _TextFinder)(record, sample, tokenizer, tile_px)
    found: dict[int, list[list[int]]] = {}
    for message, (question, answer) in zip(answers, spans, strict=True):
        found.update(finder.of_turn(message, question, answer))
    found.update(finder.bound())
    seen = ((token, [group for group in groups if group]) for token, groups in found.items())
    return Evidence.of([(token, groups) for token, groups in seen if groups])


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
        self._partners: dict[int, set[tuple[int, ...]]] = {}
        self._ids = sample.input_ids.tolist()
        side = sample.layout.tile_side
        lengths = [num_visual_tokens(grid, side) for grid in sample.grid_list]
        self._slots = sample.image_mask.nonzero().squeeze(1).split(lengths)
        self._squares = [
            shown_squares(size, grid, side, tile_px)
            for size, grid in zip(sample.image_sizes, sample.grid_list, strict=True)
        ]

    def of_turn(self, message: Message, question: range, answer: range) -> dict[int, list[list[int]]]:
        text = "".join(part.text or "" for part in message.parts)
        given = [self._record.objects[int(k)] for k in PLACEHOLDER.findall(text)]
        evidence = [self._record.objects[k] for k in message.evidence]
        read = [labeled for labeled in evidence if _is_read(labeled, text)]
        pointed = [labeled for labeled in evidence if labeled not in read]
        is_counted = bool(pointed) and not read
        found = dict(self._asked([*given, *pointed], question, may_be_none=is_counted))
        self._bind(read, [*pointed, *read] if len(parts_of(text)) > 1 else pointed)
        unnamed = self._unnamed(pointed, question)
        if read and unnamed:
            found[question.stop] = [group for labeled in unnamed for group in self._shown(labeled)]
        if is_counted:
            # A name that is found tells where to look; what is counted or measured there is the rest.
            looked_at = [labeled for labeled in pointed if not _has_character_boxes(labeled)] or pointed
            self._bind(looked_at, [labeled for labeled in pointed if labeled not in looked_at])
            groups = [group for labeled in looked_at for group in self._shown(labeled)]
            found.update((token, [*groups, [0]]) for token in answer[:-1])
        return found | dict(self._read(read, answer, text)) | dict(self._told(given, answer))

    def bound(self) -> dict[int, list[list[int]]]:
        """Return what the tokens that show things rest on, of all turns so far."""
        return {token: sorted(map(list, partners)) for token, partners in self._partners.items()}

    def _bind(self, values: Sequence[Labeled], names: Sequence[Labeled]) -> None:
        """Note for a value and a name in one row or column the tokens of each that come before the other's."""
        for pair in ((value, name) for value in values for name in names if _are_in_line(value, name)):
            places = [sorted({place for group in self._shown(labeled) for place in group}) for labeled in pair]
            for own, others in (places, places[::-1]):
                for token in set(own) - set(others):
                    if before := tuple(place for place in others if place < token):
                        self._partners.setdefault(token, set()).add(before)

    def _asked(self, objects: Sequence[Labeled], question: range, *, may_be_none: bool) -> Iterator[Rests]:
        """Yield the tokens of a question from where an object is named to where the next one is.

        While the name of a text is written, each token rests on the characters that it adds.
        """
        spans = [(self._name_in(labeled.label, question), labeled) for labeled in objects]
        named = sorted(((tokens, labeled) for tokens, labeled in spans if tokens), key=lambda pair: pair[0][-1])
        ends_at = [*(tokens[-1][0] for tokens, _ in named), question.stop]
        for (tokens, labeled), (end, until) in zip(named, pairwise(ends_at), strict=True):
            shown = self._shown(labeled)
            if _has_character_boxes(labeled):
                yield from ((token, shown[first:last]) for token, first, last in tokens[:-1] if first < last)
            groups = [*shown, *([[0]] if may_be_none else [])]
            yield from ((token, groups) for token in range(end, until))

    def _unnamed(self, pointed: Sequence[Labeled], question: range) -> list[Labeled]:
        """Return what the question does not name."""
        return [labeled for labeled in pointed if not self._name_in(labeled.label, question)]

    def _read(self, read: Sequence[Labeled], answer: range, text: str) -> Iterator[Rests]:
        """Yield the tokens that tell the next character of an answer, where that stands in the image."""
        letters: dict[int, list[int]] = {}  # by the place of a character in the answer
        after = 0
        for labeled in read:
            at = max(text.find(labeled.label, after), 0)
            after = at + len(labeled.label)
            letters.update(enumerate(self._shown(labeled), start=at))
        num_read, written = 0, b""
        for token in answer[1:]:
            written += self._tokenizer.token_bytes(self._ids[token], skip_special=True)
            whole = written.decode("utf-8", "ignore")
            # A character of several tokens is looked at for each of them.
            reached = len(whole) + (len(whole.encode()) < len(written))
            groups = [letters[place] for place in range(num_read, reached) if place in letters]
            num_read = len(whole)
            if groups:
                yield token - 1, groups

    def _told(self, given: Sequence[Labeled], answer: range) -> Iterator[Rests]:
        """Yield the tokens of the boxes that an answer gives, from the last of the name before them."""
        remaining, depth, is_box, number = iter(given), 0, False, -1
        labeled: Labeled | None = None
        open_ref, close_ref = (self._tokenizer.special_ids[tag] for tag in ("<|ref|>", "<|/ref|>"))
        close_det = self._tokenizer.special_ids["<|/det|>"]
        for token in answer:
            id = self._ids[token]
            if id == open_ref:
                labeled, number, is_box = next(remaining, None), -1, False
                continue
            if labeled is None:
                continue
            if id == close_det:
                labeled = None
                continue
            if id == close_ref:
                is_box, depth = True, 0
                yield token - 1, self._shown(labeled)
            if not is_box:
                continue
            written = self._tokenizer.token_bytes(id, skip_special=True).decode("ascii", "ignore")
            for mark in written:
                depth += (mark == "[") - (mark == "]")
                number += mark == "[" and depth == 2
            groups = self._shown(labeled)
            yield token, groups[number : number + 1] if number >= 0 else groups

    def _name_in(self, label: str, question: range) -> list[tuple[int, int, int]]:
        """Return the tokens of a question that write a name, the last time that it is there.

        With each come the characters of the name before it and up to its end.
        """
        written = b""
        reached = [0]
        for token in question:
            is_visual = self._ids[token] == self._tokenizer.image_id
            written += b"" if is_visual else self._tokenizer.token_bytes(self._ids[token], skip_special=True)
            reached.append(len(written))
        name = label.encode()
        at = written.rfind(name)
        if at < 0:
            return []
        chars = [len(name[: max(0, end - at)].decode("utf-8", "ignore")) for end in reached]
        writes = zip(question, pairwise(reached), pairwise(chars), strict=True)
        return [(token, *of) for token, (start, end), of in writes if start < at + len(name) and end > at]

    def _shown(self, labeled: Labeled) -> list[list[int]]:
        """Return for each box of an object the places of the visual tokens that show it."""
        squares_T4, slots_T = self._squares[labeled.image], self._slots[labeled.image]
        covered_NT = _covered(squares_T4, torch.tensor(labeled.boxes_px).view(-1, 4))
        # A small box may lie on the corner of four squares: then the one that has most of it shows it.
        least_N1 = covered_NT.amax(dim=1, keepdim=True).clamp(min=1e-6, max=LEAST_COVERED)
        return [slots_T[shows_T].tolist() for shows_T in covered_NT >= least_N1]


class _TextFinder(_Finder):
    """The characters of the text that a sample's first question comes with.

    `told.py` writes a line for each row, with its fields between marks. What a question names stands in one of them.
    An object of a text has for each character a box from its number to the next.
    """

    def __init__(self, record: Record, sample: Sample, tokenizer: Tokenizer, tile_px: int) -> None:
        super().__init__(record, sample, tokenizer, tile_px)
        questions = [message.parts[0].text or "" for message in record.messages if message.role == "user"]
        self._text, _, questions[0] = questions[0].rpartition("\n")
        self._questions = iter(questions)
        self._first = next(_spans(sample, tokenizer))[0]
        self._token_of: list[int] = []  # by the number of a character of the text

    def of_turn(self, message: Message, question: range, answer: range) -> dict[int, list[list[int]]]:
        asked, answered = next(self._questions), message.parts[0].text or ""
        text, within = (self._text, self._first) if self._text else (asked, question)
        self._token_of = self._tokens_of(text, within)
        read, pointed = fields_of(text, asked, answered) if self._text else compared_in(asked, answered)
        if len(read) != len(parts_of(answered)):
            return {}
        rests_on, told = ([_text_object(text, place) for place in places] for places in (pointed, read))
        self._bind(told, rests_on)
        words = range(max(question.start, self._token_of[-1] + 1), question.stop)  # those after the text
        found = dict(self._asked(rests_on, words, may_be_none=False)) | dict(self._read(told, answer, answered))
        if unnamed := self._unnamed(rests_on, words):
            # Of a number in a text only the last token comes after all of it.
            found[question.stop] = [self._shown(labeled)[-1] for labeled in unnamed]
        return found

    def _tokens_of(self, text: str, within: range) -> list[int]:
        """Return the token that ends each character of a text, which the tokens of a range contain."""
        pieces = [self._tokenizer.token_bytes(self._ids[token], skip_special=True) for token in within]
        ends = list(accumulate(map(len, pieces)))
        start = b"".join(pieces).index(text.encode())
        char_ends = (start + end for end in accumulate(len(char.encode()) for char in text))
        return [within[bisect_left(ends, end)] for end in char_ends]

    def _shown(self, labeled: Labeled) -> list[list[int]]:
        return [[self._token_of[int(box[0])]] for box in labeled.boxes_px]


def _text_object(text: str, place: Place) -> Labeled:
    boxes = tuple((float(at), 0.0, at + 1.0, 1.0) for at in range(*place))
    return Labeled(image=0, label=text[slice(*place)], boxes_px=boxes)


def _has_character_boxes(labeled: Labeled) -> bool:
    """Tell whether an object is a line of text: a box for each character of its label, one beside the other."""
    boxes = labeled.boxes_px
    return len(boxes) == len(labeled.label) and all(left[2] == right[0] for left, right in pairwise(boxes))


def _are_in_line(one: Labeled, other: Labeled) -> bool:
    """Tell whether of two things in an image half of the smaller lies beside, above or below the other."""
    if one.image != other.image or not (one.boxes_px and other.boxes_px):
        return False
    for axis in (0, 1):
        (start, end), (other_start, other_end) = _extent(one, axis), _extent(other, axis)
        if min(end, other_end) - max(start, other_start) > 0.5 * min(end - start, other_end - other_start):
            return True
    return False


def _extent(labeled: Labeled, axis: int) -> tuple[float, float]:
    return min(box[axis] for box in labeled.boxes_px), max(box[axis + 2] for box in labeled.boxes_px)


def _is_read(labeled: Labeled, answer: str) -> bool:
    """Tell whether an object is a text that the answer repeats, with a box for each of its characters."""
    return len(labeled.boxes_px) == len(labeled.label) and labeled.label in answer


def _covered(squares_T4: Tensor, boxes_N4: Tensor) -> Tensor:
    """Return the area that each square shares with each box, over the smaller of the two: [N, T].

    It is 0 where one of them has no area.
    """
    squares_1T4, boxes_N14 = squares_T4.unsqueeze(0), boxes_N4.unsqueeze(1)
    ends_NT2 = torch.minimum(squares_1T4[..., 2:], boxes_N14[..., 2:])
    sides_NT2 = (ends_NT2 - torch.maximum(squares_1T4[..., :2], boxes_N14[..., :2])).clamp(min=0)
    smaller_NT = torch.minimum(_area(squares_1T4), _area(boxes_N14))
    return torch.where(smaller_NT > 0, sides_NT2.prod(dim=-1) / smaller_NT.clamp(min=1e-9), 0.0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
