"""Lossless speculation: guess the next tokens of an answer from text that is at hand, and check them in one step.

A decoding step costs little more for several tokens than for one, since most of its time goes to reading the weights.
So the tokens that probably follow are decoded together with the last one. Each is then chosen from its logits as
always, with the same options and the same draw, and the step ends at the first that differs from the guess. The answer
is therefore that of decoding one by one, token for token, and only the time differs.

Guesses come from three places: tokens that a constraint forces, an expected answer that the caller gives, and n-grams
of the conversation and of the answer so far ("prompt lookup decoding"). How many are made depends on the share that
was right and on the measured time of a step by its rows, so nothing is guessed where it does not pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vl2.errors import UserError
from vl2.infer.sampling import GenerateOptions
from vl2.infer.sequence import SequenceState
from vl2.process.sample import Sample
from vl2.process.tokenizer import Tokenizer

MAX_STEP_ROWS = 16  # tokens in one step with guesses, over all answers
LONGEST_MATCH = 8  # tokens before a guess that are compared
MAX_PLACES = 16  # occurrences of two tokens that are compared
NEAR = 8  # tokens of an expected answer in which a single token is looked for


class TextLookup:
    """Find what followed the last tokens of an answer where they occurred before.

    The text is an expected answer, then the prompt, then the answer, to which `add` appends.
    """

    def __init__(self, expected_ids: Sequence[int], prompt_ids: Sequence[int]) -> None:
        """Both may be empty."""
        self._ids = [*expected_ids, *prompt_ids]
        self._num_expected = len(expected_ids)
        self._first_of_answer = len(self._ids)
        self._next = 0  # the place in the expected answer that has been reached
        self._places: dict[tuple[int, int], list[int]] = {}  # by two tokens, the places behind them
        for place in range(2, len(self._ids) + 1):
            self._note(place)

    def add(self, token_id: int) -> None:
        """Append a token of the answer."""
        if self._next < self._num_expected and self._ids[self._next] == token_id:
            self._next += 1
        self._ids.append(token_id)
        self._note(len(self._ids))

    def draft(self, count: int) -> tuple[list[int], int]:
        """Return up to `count` tokens that may follow, and how many tokens before them agree."""
        place, length = self._longest_match()
        if length < 2 and (near := self._near()) is not None:
            place, length = near, 1
        if length == 0:
            return [], 0
        if place < self._num_expected:
            self._next = place
            return self._ids[place : min(place + count, self._num_expected)], length
        return self._ids[place : place + count], length

    def _longest_match(self) -> tuple[int, int]:
        """Return the place behind the longest match. Of equals the next of the expected answer, else the latest."""
        ids, best, found = self._ids, (0, False, 0), (0, 0)
        for place in self._places.get((ids[-2], ids[-1]), ())[-MAX_PLACES:] if len(ids) > 1 else ():
            if place == len(ids):
                continue
            length = 2
            while length < min(LONGEST_MATCH, place) and ids[place - length - 1] == ids[-length - 1]:
                length += 1
            is_next = self._next <= place < self._num_expected
            rank = length, is_next, -place if is_next else place
            if rank > best:
                best, found = rank, (place, length)
        return found

    def _near(self) -> int | None:
        """Return where the expected answer goes on: at its beginning, or behind the last token, if that is near."""
        if len(self._ids) == self._first_of_answer:
            return 0 if self._num_expected else None
        for place in range(self._next, min(self._next + NEAR, self._num_expected)):
            if place and self._ids[place - 1] == self._ids[-1]:
                return place
        return None

    def _note(self, place: int) -> None:
        if place != self._num_expected + 1:  # where the prompt follows an expected answer, nothing goes on
            self._places.setdefault((self._ids[place - 2], self._ids[place - 1]), []).append(place)


@dataclass(frozen=True, kw_only=True)
class DraftToken:
    """A token that may follow, and the probability that it does if the guesses before it are right."""

    token_id: int
    chance: float
    is_forced: bool = False  # by a constraint


@dataclass(kw_only=True)
class Speculation:
    """The guesses of one answer, and how many of them were right."""

    lookup: TextLookup
    num_drafted: int = 0
    num_accepted: int = 0
    # The share of guesses that were right lately, by the tokens before them that agreed: 1, 2 or 3, and more.
    _shares: list[float] = field(default_factory=lambda: [0.3, 0.5, 0.8])
    _kind: int = 0

    def draft(self, sequence: SequenceState) -> list[DraftToken]:
        """Return tokens that may follow."""
        count = min(MAX_STEP_ROWS - 1, sequence.max_new_tokens - len(sequence.new_ids) - 1)
        if count < 1:
            return []
        looked_up, length = self.lookup.draft(count)
        self._kind = 0 if length < 2 else 1 if length < 4 else 2
        found = [DraftToken(token_id=token_id, chance=self._shares[self._kind]) for token_id in looked_up]
        return found if sequence.constraint is None else _within(sequence, found, count)

    def judge(self, drafts: Sequence[DraftToken], num_accepted: int) -> None:
        """Note how many guesses of a step were right."""
        self.num_drafted += len(drafts)
        self.num_accepted += num_accepted
        tried = [number for number, draft in enumerate(drafts[: num_accepted + 1]) if not draft.is_forced]
        for number in tried:
            self._shares[self._kind] += 0.15 * ((number < num_accepted) - self._shares[self._kind])
        if not tried:  # what was not tried is tried again later
            self._shares[self._kind] += 0.02 * (0.5 - self._shares[self._kind])


def start_speculation(sample: Sample, options: GenerateOptions, tokenizer: Tokenizer) -> Speculation:
    """Return the guesses for an answer to a prompt."""
    expected = options.prediction or (options.constraint.outline if options.constraint is not None else "")
    expected_ids = tokenizer.encode(expected)
    if options.prediction:
        # The built-in model was taught to write what it reads letter by letter.
        expected_ids += tokenizer.encode(expected, by_character=True)
    return Speculation(lookup=TextLookup(expected_ids, sample.input_ids[~sample.image_mask].tolist()))


def _within(sequence: SequenceState, looked_up: Sequence[DraftToken], count: int) -> list[DraftToken]:
    """Return guesses that the constraint allows: those it forces, and in between those that were looked up."""
    assert sequence.constraint is not None
    state, left = sequence.constraint.copy(), sequence.max_new_tokens - len(sequence.new_ids)
    drafts, rest = list[DraftToken](), list(looked_up)
    try:
        while len(drafts) < count:
            allowed_V = state.allowed(left - len(drafts))
            allowed = allowed_V.nonzero()[:2, 0].tolist()
            if len(allowed) == 1:
                draft = DraftToken(token_id=allowed[0], chance=1.0, is_forced=True)
                rest = rest[1:] if rest and rest[0].token_id == draft.token_id else []
            elif rest and rest[0].token_id < len(allowed_V) and allowed_V[rest[0].token_id]:
                draft = rest.pop(0)
            else:
                break
            if draft.token_id == sequence.eos_id:
                break
            state.advance(draft.token_id)
            drafts.append(draft)
    except UserError:  # the constraint cannot be followed after these guesses, which need not be the answer
        pass
    return drafts


@dataclass
class StepTimes:
    """The time of a decoding step as a line over its rows, fitted to the last steps."""

    _count: float = 0.0
    _rows: float = 0.0
    _rows2: float = 0.0
    _time: float = 0.0
    _product: float = 0.0

    KEPT = 0.97  # weight of what was known, at each new step
    PRIOR = 0.08  # of the time of one row that another costs, until it is known

    def add(self, rows: int, seconds: float) -> None:
        if self._count:
            mean = self._time / self._count
            seconds = min(seconds, 4 * mean)  # a pause of the machine
        else:
            # One step counts as three: of one row, and of 8 rows with the cost that is assumed.
            first = seconds / (1 + self.PRIOR * (rows - 1))
            for known in (1, 8):
                self._sum(known, first * (1 + self.PRIOR * (known - 1)))
        for name in ("_count", "_rows", "_rows2", "_time", "_product"):
            setattr(self, name, getattr(self, name) * self.KEPT)
        self._sum(rows, seconds)

    def _sum(self, rows: int, seconds: float) -> None:
        self._count += 1
        self._rows += rows
        self._rows2 += rows * rows
        self._time += seconds
        self._product += rows * seconds

    def of(self, rows: int) -> float:
        """Return the time of a step with so many rows, over that of one row if no step has been measured yet."""
        if not self._count:
            return 1 + self.PRIOR * (rows - 1)
        mean_rows, mean_time = self._rows / self._count, self._time / self._count
        spread = self._rows2 / self._count - mean_rows**2
        slope = self.PRIOR * mean_time / (1 + self.PRIOR * (mean_rows - 1))
        if spread > 0.05:
            slope = max(0.0, (self._product / self._count - mean_rows * mean_time) / spread)
        return max(mean_time + slope * (rows - mean_rows), 0.1 * mean_time)


def plan_step(drafts: Sequence[Sequence[DraftToken]], times: StepTimes) -> list[int]:
    """Return how many of the guesses of each answer to decode, so that most tokens come per second."""
    taken, expected, rows = [0] * len(drafts), float(len(drafts)), len(drafts)
    product = [1.0] * len(drafts)
    best, best_rate = list(taken), expected / times.of(rows)
    while rows < MAX_STEP_ROWS:
        gains = [product[i] * of[taken[i]].chance if taken[i] < len(of) else 0.0 for i, of in enumerate(drafts)]
        if not gains or max(gains) <= 0:
            break
        chosen = gains.index(max(gains))
        product[chosen] = gains[chosen]
        taken[chosen] += 1
        rows, expected = rows + 1, expected + gains[chosen]
        if expected / times.of(rows) > best_rate:
            best, best_rate = list(taken), expected / times.of(rows)
    return best
