"""Match the lines of a page with those of an answer as OmniDocBench's `quick_match` and `simple_match` do.

The quick match first joins neighboring answer lines that together come close to one gold line, then assigns lines one
to one by edit distance. Gold lines that found nothing are sought within answer lines, which several gold lines may
share; what is then left on both sides is paired.

Three properties of the program are kept, because the published figures have them: gold lines without a partner count
twice if no answer line is left, answer lines beyond the number of gold lines that are left do not count, and neither do
answer lines that were found to contain only gold lines already taken.

Source: `match_gt2pred_quick` and `match_gt2pred_simple` of OmniDocBench in VLMEvalKit (commit e8e78f05), without their
code. The program falls back to the simple match after 30 seconds, which this does not do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from vl2.optional_imports import import_extra

SURE = 0.25  # lines below this distance are not joined with others
MAX_MATCH = 0.7  # a pair above this distance is undone
MAX_PART = 0.6  # of the distance of a joined line from the nearest part of the gold line
MAX_WITHIN = 0.4  # of the distance of a gold line from the nearest part of an answer line


@dataclass(frozen=True, kw_only=True)
class Match:
    """Indices of gold lines and of answer lines that are compared, each joined. One side may be empty."""

    gold: tuple[int, ...]
    answer: tuple[int, ...]


@cache
def _library(name: str) -> Any:
    return import_extra(name, "documents", "scoring pages")


def edit_distance(a: str | Sequence[object], b: str | Sequence[object]) -> int:
    return int(_library("rapidfuzz.distance.Levenshtein").distance(a, b))


def normalized_distance(a: str, b: str) -> float:
    return edit_distance(a, b) / max(len(a), len(b)) if a or b else 0.0


def _assign(costs: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    if not costs or not costs[0]:
        return []
    rows, columns = _library("scipy.optimize").linear_sum_assignment(costs)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]


def simple_match(gold: Sequence[str], answer: Sequence[str]) -> list[Match]:
    """Assign lines one to one by normalized edit distance. Gold lines come first; answer lines left over are one."""
    costs = [[normalized_distance(one, other) for other in answer] for one in gold]
    partner = dict(_assign(costs))
    matches = [Match(gold=(i,), answer=(partner[i],) if i in partner else ()) for i in range(len(gold))]
    rest = tuple(j for j in range(len(answer)) if j not in partner.values())
    return [*matches, Match(gold=(), answer=rest)] if rest else matches


def quick_match(gold: Sequence[str], answer: Sequence[str]) -> list[Match]:
    """Match lines as described above."""
    if not gold:
        return [Match(gold=(), answer=(j,)) for j in range(len(answer))]
    if not answer:
        return [Match(gold=(i,), answer=()) for i in range(len(gold))]
    if len(gold) == len(answer) == 1:
        return [Match(gold=(0,), answer=(0,))]
    groups = _join_answer_lines(gold, answer)
    lines = [" ".join(answer[j] for j in group) for group in groups]
    costs = [[normalized_distance(one, other) for other in lines] for one in gold]
    shared: dict[tuple[int, ...], list[int]] = {}  # answer lines: the gold lines that are compared with them
    taken: set[int] = set()
    for i, k in _assign(costs):
        if costs[i][k] <= MAX_MATCH:
            shared.setdefault(groups[k], []).append(i)
            taken.add(i)
    left = [i for i in range(len(gold)) if i not in taken]
    for j, line in enumerate(answer):
        within = [i for i in left if _distance_within(gold[i], line) < MAX_WITHIN]
        if within:
            fresh = [i for i in within if i not in taken]
            shared.setdefault((j,), []).extend(fresh)
            taken.update(fresh)
    return _with_the_rest(shared, gold, answer)


def _with_the_rest(shared: dict[tuple[int, ...], list[int]], gold: Sequence[str], answer: Sequence[str]) -> list[Match]:
    matches = {key: sorted(set(lines)) for key, lines in shared.items() if lines}
    used = {j for key in shared for j in key}
    left_gold = [i for i in range(len(gold)) if not any(i in lines for lines in matches.values())]
    left_answer = [j for j in range(len(answer)) if j not in used]
    found = [Match(gold=tuple(lines), answer=key) for key, lines in matches.items()]
    if not left_answer:
        alone = [Match(gold=(i,), answer=()) for i in left_gold]
        return [*found, *alone, *alone]
    if not left_gold:
        return [*found, Match(gold=(), answer=tuple(left_answer))]
    pairs = _assign([[edit_distance(gold[i], answer[j]) for j in left_answer] for i in left_gold])
    found += [Match(gold=(left_gold[row],), answer=(left_answer[column],)) for row, column in pairs]
    paired = {row for row, _ in pairs}
    return found + [Match(gold=(i,), answer=()) for row, i in enumerate(left_gold) if row not in paired]


def _distance_within(part: str, line: str) -> float:
    """Return the least distance of `part` from the pieces of a line that are as long, per character; 1 if none is."""
    if not part or len(line) < len(part):
        return 1.0
    pieces = (line[start : start + len(part)] for start in range(len(line) - len(part) + 1))
    return min(edit_distance(piece, part) for piece in pieces) / len(part)


def _join_answer_lines(gold: Sequence[str], answer: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the answer's lines in order, as groups of neighbors that are compared as one line."""
    costs = [[normalized_distance(one, other) for other in answer] for one in gold]
    sure = {j for row in costs for j, cost in enumerate(row) if cost < SURE}
    free = [j for j in range(len(answer)) if j not in sure]
    chosen: list[tuple[tuple[int, ...], float]] = []
    for i, line in enumerate(gold):
        if min(costs[i]) < SURE or not free:
            continue
        groups = [_extend(line, j, answer, sure) for j in free]
        distances = [normalized_distance(line, " ".join(answer[j] for j in group)) for group in groups]
        best = distances.index(min(distances))
        chosen.append((groups[best], distances[best]))
    joined = _without_overlap(chosen)
    starts = {group[0]: group for group in joined}
    inner = {j for group in joined for j in group[1:]}
    return [starts.get(j, (j,)) for j in range(len(answer)) if j not in inner]


def _extend(gold: str, start: int, answer: Sequence[str], sure: set[int]) -> tuple[int, ...]:
    """Return `start` and the lines after it that bring the joined line closer to the gold line."""
    group = [start]
    while (following := group[-1] + 1) < len(answer) and following not in sure:
        lines = [answer[j] for j in (*group, following)]
        joined, before = " ".join(lines), " ".join(lines[:-1])
        if normalized_distance(gold, joined) > normalized_distance(gold, before):
            break
        parts = [_distance_within(line, gold) if len(line) <= len(gold) and line else None for line in lines]
        if any(part is None or part > MAX_PART for part in parts[:-1]):
            break
        if parts[-1] is None or parts[-1] >= MAX_PART:
            break
        group.append(following)
        if len(joined) > len(gold):
            break
    return tuple(group)


Candidate = tuple[tuple[int, ...], float]


def _without_overlap(chosen: Sequence[Candidate]) -> list[tuple[int, ...]]:
    """Return groups that share no line: of each cluster of overlapping ones, the set with the least mean distance."""
    clusters: list[list[Candidate]] = []
    for candidate in sorted(chosen, key=lambda pair: pair[0][0]):
        if clusters and any({*candidate[0]} & {*other[0]} for other in clusters[-1]):
            clusters[-1].append(candidate)
        else:
            clusters.append([candidate])
    found: list[tuple[int, ...]] = []
    for cluster in clusters:
        paths: list[list[Candidate]] = [cluster[:1]]
        for candidate in cluster[1:]:
            _add_to_paths(paths, candidate)
        best = min(paths, key=lambda path: sum(cost for _, cost in path) / len(path))
        found += [group for group, _ in best]
    return found


def _add_to_paths(paths: list[list[Candidate]], candidate: Candidate) -> None:
    """Add a candidate to every path that it does not overlap; begin a path with it if there is none."""
    group, cost = candidate
    has_place = False
    for path in paths:
        same = next((index for index, (other, _) in enumerate(path) if other == group), None)
        if same is not None:
            has_place = True
            if path[same][1] > cost:
                path.pop(same)
                path.append(candidate)  # the cheaper of two equal groups
        elif not any({*group} & {*other} for other, _ in path):
            path.append(candidate)
            has_place = True
    if not has_place:
        paths.append([candidate])
