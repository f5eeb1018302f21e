"""Evidence: the visual tokens on which a question's and an answer's tokens rest, found in drawn records."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from PIL import Image

import vl2
from experiments.nano.draw.charts import Charts
from experiments.nano.draw.fields import compared_in, fields_of
from experiments.nano.draw.receipts import Receipts
from experiments.nano.draw.tables import Tables
from experiments.nano.draw.told import Told
from experiments.nano.evidence import Evidence, find_evidence, join, shown_squares
from tests.experiments.nano_inputs import write_inputs
from vl2.data.record import Message, Part, Record
from vl2.grid import Grid, num_visual_tokens
from vl2.process.processor import Processor
from vl2.process.sample import Sample
from vl2.synth.draft import Draft
from vl2.synth.emoji import Emoji
from vl2.synth.primer_charts import PrimerBars, PrimerTable
from vl2.synth.primer_lines import PrimerReading
from vl2.synth.primer_scene import PrimerScene
from vl2.synth.scene import Composed, ask_count, ask_place, compose
from vl2.synth.source import Source, generate
from vl2.synth.sprites import Kind, built_in_kinds

PROCESSOR = Processor.from_folder(Path(vl2.__file__).parent / "nano")
TOKENIZER, SIDE, TILE_PX = PROCESSOR.tokenizer, PROCESSOR.config.tokens_per_side, PROCESSOR.config.tile_px

pytestmark = pytest.mark.usefixtures("no_system_fonts")


def scene(names: tuple[str, ...], seed: int = 3) -> Composed:
    kinds: dict[str, Kind] = {kind.full_name("en"): kind for kind in built_in_kinds()}
    return compose([kinds[name] for name in names], (168, 128), random.Random(seed))


def closed(draft: Draft) -> Record:
    return draft.record(id="a", source="test", category="vqa", licence="CC0-1.0")


def sampled(record: Record, *, spells_answers: bool = False) -> tuple[Sample, Evidence]:
    sample = PROCESSOR.encode(record.to_turns(), train=True, spells_answers=spells_answers)
    return sample, find_evidence(record, sample, TOKENIZER, TILE_PX)


def groups_by_token(evidence: Evidence) -> dict[int, list[set[int]]]:
    group, place = evidence.pairs_m2.unbind(1)
    tokens = evidence.token_n.tolist()
    return {
        token: [set(place[group == g].tolist()) for g in (evidence.row_g == row).nonzero().flatten()]
        for row, token in enumerate(tokens)
    }


def by_token(evidence: Evidence) -> dict[int, set[int]]:
    return {token: set().union(*groups) for token, groups in groups_by_token(evidence).items()}


def written(sample: Sample, tokens: list[int]) -> str:
    return TOKENIZER.decode(sample.input_ids[tokens].tolist(), skip_special=False)


@pytest.mark.parametrize(("size", "grid"), [((100, 60), (1, 1)), ((400, 160), (2, 1)), ((90, 300), (1, 2))])
def test_the_squares_of_a_view_cover_the_image_once(size: tuple[int, int], grid: Grid) -> None:
    squares = shown_squares(size, grid, SIDE, TILE_PX)
    assert squares.shape == (num_visual_tokens(grid, SIDE), 4)
    area = (squares[:, 2:] - squares[:, :2]).prod(dim=1)
    in_global = SIDE * (SIDE + 1)
    for view in (area[:in_global], area[in_global + 1 :]):
        assert float(view.sum()) == pytest.approx(size[0] * size[1], rel=1e-3)
    assert float(area[in_global]) == 0, "the separator shows nothing"
    assert not area[:in_global].view(SIDE, SIDE + 1)[:, -1].any(), "a newline shows nothing"
    # Row by row from the left, whatever tile a token is of.
    local = squares[in_global + 1 :].view(grid[1] * SIDE, grid[0] * SIDE + 1, 4)[:, :-1]
    assert bool((local[:, 1:, 0] >= local[:, :-1, 0]).all())
    assert bool((local[1:, :, 1] >= local[:-1, :, 1]).all())


def test_from_where_a_thing_is_named_all_rests_on_it_and_each_box_on_its_own() -> None:
    composed = scene(("green house", "red star", "red star"))
    draft = Draft(language="en")
    draft.picture(composed.image)
    ask_place(draft, composed, "red star", random.Random(1))
    record = closed(draft)
    sample, evidence = sampled(record)
    found = by_token(evidence)
    squares = shown_squares(sample.image_sizes[0], sample.grid_list[0], SIDE, TILE_PX)
    slots = sample.image_mask.nonzero().squeeze(1).tolist()
    first, second = composed.boxes("en", "red star")

    def centre_shown(places: set[int], box: tuple[float, float, float, float]) -> bool:
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        shown = [squares[slots.index(place)].tolist() for place in places]
        return any(x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in shown)

    assert set().union(*found.values()) <= set(slots)
    ids = sample.input_ids.tolist()
    assistant = ids.index(TOKENIZER.assistant_id)
    asked = [token for token in found if token < assistant]
    assert asked == list(range(asked[0], assistant)), "from the name to the end of the question"
    assert TOKENIZER.decode(ids[asked[0] - 3 : asked[0] + 1]).endswith("red star")
    told = [token for token in found if token > assistant]
    opened = [token for token in told if "[" in written(sample, [token])]
    assert len(opened) == 2
    for token in told:
        in_first = centre_shown(found[token], first)
        in_second = centre_shown(found[token], second)
        if token < opened[0]:
            assert (in_first, in_second) == (True, True), written(sample, [token])
        else:
            assert (in_first, in_second) == (token < opened[1], token >= opened[1]), written(sample, [token])
    (green,) = composed.boxes("en", "green house")
    assert not any(centre_shown(places, green) for places in found.values())


def test_a_count_rests_on_each_that_it_counts_and_on_the_first_token() -> None:
    composed = scene(("blue tree", "blue tree", "grey circle"))
    draft = Draft(language="en")
    draft.picture(composed.image)
    ask_count(draft, composed, "blue tree", "", random.Random(0))
    ask_count(draft, composed, "pink square", "", random.Random(0))
    sample, evidence = sampled(closed(draft))
    found, slots = (
        groups_by_token(evidence),
        set(sample.input_ids.new_tensor(range(len(sample)))[sample.image_mask].tolist()),
    )
    ids = sample.input_ids.tolist()
    there, absent = (place + 1 for place, id in enumerate(ids) if id == TOKENIZER.assistant_id)
    # The colon is the token that is trained to predict the number.
    *trees, first = found[there]
    assert first == {0}
    assert len(trees) == 2
    assert all(tree and tree <= slots for tree in trees)
    assert found[absent] == [{0}], "what is not there rests on the first token alone"


@pytest.mark.parametrize(
    "source",
    [
        PrimerScene(of_every_kind=True),
        PrimerBars(),
        PrimerTable(),
        PrimerReading(),
        Emoji(tasks=("name_shown", "list_shown")),
    ],
    ids=lambda source: source.name,
)
def test_drawn_records_have_evidence_that_lies_in_their_images(source: Source) -> None:
    check_evidence(source)


@pytest.mark.parametrize("kind", [Charts, Tables, Receipts])
def test_so_have_those_of_the_run(kind: type[Source], tmp_path: Path) -> None:
    check_evidence(kind(inputs=str(write_inputs(tmp_path / "inputs")), languages=("en",)))  # type: ignore[call-arg]


def check_evidence(source: Source) -> None:
    with_evidence = 0
    for record in generate(source, 30, seed=2):
        assert Record.from_dict(record.to_dict()) == record
        sample, evidence = sampled(record)
        with_evidence += len(evidence) > 0
        groups, places = evidence.pairs_m2.unbind(1)
        assert set(evidence.row_g.tolist()) == set(range(len(evidence))), "no token without a group"
        assert set(groups.tolist()) == set(range(len(evidence.row_g))), "no group without a place"
        assert bool((sample.image_mask[places] | (places == 0)).all())
        assert bool((places < evidence.token_n[evidence.row_g[groups]]).all()), "attention looks back"
    assert with_evidence >= 15


def test_a_value_that_is_not_printed_rests_on_the_bar_and_the_question_on_its_name() -> None:
    draft = Draft(language="en")
    draft.picture(Image.new("RGB", (168, 168), "white"))
    name = draft.show("Oslo", [(62 + 4 * n, 150, 66 + 4 * n, 160) for n in range(4)])
    bar = draft.show("a bar or point", [(60, 60, 80, 80)])
    draft.ask("How high is Oslo?", "40", [name, bar])
    sample, evidence = sampled(closed(draft), spells_answers=True)
    squares = shown_squares((168, 168), sample.grid_list[0], SIDE, TILE_PX)
    slots = sample.image_mask.nonzero().squeeze(1)
    reaches = [(min(x1, 80) - max(x0, 60), min(y1, 80) - max(y0, 60)) for x0, y0, x1, y1 in squares.tolist()]
    on_bar = {int(slot) for slot, (wide, high) in zip(slots, reaches, strict=True) if wide > 0 and high > 0}
    found, ids = groups_by_token(evidence), sample.input_ids.tolist()
    colon = ids.index(TOKENIZER.assistant_id) + 1
    assert on_bar
    assert all(
        {place for group in found[token] for place in group} <= on_bar | {0} for token in found if token >= colon
    )
    shows = sample.image_mask.nonzero().squeeze(1).tolist()
    asked = {
        place for token in found if token < colon and token not in shows for group in found[token] for place in group
    }
    assert asked - on_bar - {0}, "the name is below"
    bound = {token: {place for group in found[token] for place in group} for token in found if token in shows}
    assert any(token in on_bar and rests <= asked for token, rests in bound.items()), "the bar rests on its name"
    assert any(token in asked and rests <= on_bar for token, rests in bound.items()), "and the name on the bar"


@pytest.mark.parametrize("has_lookup", [True, False])
def test_a_value_and_the_names_in_its_row_and_column_rest_on_each_other(has_lookup: bool) -> None:
    corners = {"Oslo": (6, 120), "Rain": (120, 6), "4817": (120, 120), "Town": (6, 6)}
    draft = Draft(language="en")
    draft.picture(Image.new("RGB", (168, 168), "white"))
    at = {name: draft.show(name, [(x + 6 * n, y, x + 6 * n + 6, y + 12) for n in range(4)])
          for name, (x, y) in corners.items()}  # fmt: skip
    if has_lookup:
        draft.ask("What is the Rain of Oslo?", "4817", [at["Oslo"], at["Rain"], at["4817"]])
    draft.ask("Which Town has the most Rain?", "4817 (Oslo)", [at["Town"], at["Rain"], at["4817"], at["Oslo"]])
    sample, evidence = sampled(closed(draft), spells_answers=True)
    squares = shown_squares((168, 168), sample.grid_list[0], SIDE, TILE_PX)
    slots, found = sample.image_mask.nonzero().squeeze(1).tolist(), by_token(evidence)
    seen = set[tuple[str, str]]()

    def names_at(places: Iterable[int]) -> set[str]:
        return {
            name
            for name, (x, y) in corners.items()
            for x0, y0, x1, y1 in (squares[slots.index(place)].tolist() for place in places)
            if min(x1, x + 24) > max(x0, x) and min(y1, y + 12) > max(y0, y)
        }

    for token, places in found.items():
        if sample.image_mask[token]:
            assert max(places) < token
            seen |= {(one, other) for one in names_at([token]) for other in names_at(places)}
    pairs = {frozenset(pair) for pair in seen}
    # "Oslo" answers the second question, whose "Rain" is in another row and column.
    assert pairs == {frozenset(("4817", "Oslo")), frozenset(("4817", "Rain")), frozenset(("Oslo", "Town"))}


@pytest.mark.parametrize(
    "source", [PrimerBars(tasks=("value",), turns=1), PrimerTable(tasks=("lookup",), turns=1)], ids=lambda s: s.name
)
def test_a_value_is_found_by_its_names_and_read_digit_by_digit(source: Source) -> None:
    for record in generate(source, 20, seed=4):
        question, answer = (message.parts[-1].text or "" for message in record.messages)
        *named, value = (record.objects[index] for index in record.messages[1].evidence)
        assert named
        assert all(labeled.label in question for labeled in named)
        assert value.label == answer
        sample, evidence = sampled(record, spells_answers=True)
        found, ids = groups_by_token(evidence), sample.input_ids.tolist()
        colon = ids.index(TOKENIZER.assistant_id) + 1
        read = {token: groups for token, groups in found.items() if token >= colon}
        assert written(sample, [token + 1 for token in read]) == answer, "the token that tells a digit rests on it"
        assert list(read) == list(range(colon, colon + len(answer)))
        asked = {token: groups for token, groups in found.items() if token < colon and not sample.image_mask[token]}
        assert {len(groups) for groups in list(asked.values())[-2:]} <= {len(labeled.label) for labeled in named}, (
            "a whole name"
        )
        spelled = written(sample, list(asked))
        assert all(labeled.label in spelled for labeled in named), "from the first piece of a name on"
        assert not any({0} in groups for groups in found.values()), "what is read does not rest on the first token"


@pytest.mark.parametrize(("source", "spells"), [(PrimerReading(max_distortions=0), False), (PrimerReading(), True)])
def test_a_text_is_read_letter_by_letter_from_left_to_right(source: Source, spells: bool) -> None:
    num_read = 0
    for record in generate(source, 25, seed=6):
        sample, evidence = sampled(record, spells_answers=spells)
        found, ids = groups_by_token(evidence), sample.input_ids.tolist()
        colon = ids.index(TOKENIZER.assistant_id) + 1
        first = record.messages[1]
        if not first.evidence:
            continue
        num_read += 1
        lines = [record.objects[index] for index in first.evidence]
        text = first.parts[-1].text or ""
        told = next(line for line in lines if text.startswith(line.label))
        assert len(told.boxes_px) == len(told.label)
        left = [box[0] for box in told.boxes_px]
        assert left == sorted(left)
        end = ids.index(TOKENIZER.eos_id, colon) if TOKENIZER.eos_id in ids[colon:] else len(ids)
        reads = [token for token in found if colon <= token < end]
        assert reads[0] == colon, "the colon tells the first letter"
        if spells:
            between = len(text) - sum(len(line.label) for line in lines if line.label in text)
            assert len(reads) == len(text) - between
    assert num_read >= 15


def test_each_thing_of_a_sheet_is_named_where_it_lies() -> None:
    for record in generate(Emoji(tasks=("list_shown",)), 6, seed=3):
        sample, evidence = sampled(record)
        found = groups_by_token(evidence)
        ids, slots = sample.input_ids.tolist(), sample.image_mask.nonzero().flatten().tolist()
        squares_T4 = shown_squares(sample.image_sizes[0], sample.grid_list[0], sample.layout.tile_side, TILE_PX)
        answers = [message for message in record.messages if message.role == "assistant"]
        colons = [place + 1 for place, id in enumerate(ids) if id == TOKENIZER.assistant_id]
        for message, colon, end in zip(answers, colons, [*colons[1:], len(ids)], strict=True):
            told = [record.objects[index] for index in message.evidence]
            reads = [token for token in found if colon <= token < end]
            assert reads[0] == colon, "the colon tells the first name"
            assert len(reads) >= len(told)
            seen = [thing.boxes_px[0] for thing in told]
            for token in (reads[0], reads[-1]):
                box = seen[0] if token == colon else seen[-1]
                x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
                for places in found[token]:
                    shown = squares_T4[[slots.index(place) for place in places]]
                    holds = (shown[:, :2] <= torch.tensor((x, y))) & (torch.tensor((x, y)) <= shown[:, 2:])
                    assert holds.all(dim=1).any(), "of the visual tokens one shows the middle of the thing"


TOLD = "Town: Ulm | Height: 478 m\nTown: Jena | Height: 143 m\nTown: Bonn | Height: 60 m"


def test_an_answer_in_told_text_rests_on_its_letters_and_a_question_on_what_it_names() -> None:
    draft = Draft(language="en")
    draft.ask(f"{TOLD}\nWhat is the Height of Jena?", "143 m")
    draft.ask("Which Town has 60 m?", "Bonn")
    sample, evidence = sampled(closed(draft), spells_answers=True)
    ids, found = sample.input_ids.tolist(), by_token(evidence)
    colon, other = (place + 1 for place, id in enumerate(ids) if id == TOKENIZER.assistant_id)
    # The place of each letter in the text, which is written once before the questions.
    pieces = [TOKENIZER.decode([id], skip_special=False) for id in ids]
    ends = list(itertools.accumulate(map(len, pieces)))

    def place_of(letter: int) -> int:
        return next(token for token, end in enumerate(ends) if end > letter)

    start = "".join(pieces).index(TOLD)
    for first, answer, line in ((colon, "143 m", "143 m\n"), (other, "Bonn", "Bonn")):
        at = start + TOLD.index(line)
        assert [found[first + n] for n in range(len(answer))] == [{place_of(at + n)} for n in range(len(answer))]
    jena, height = ({place_of(start + TOLD.index(name, TOLD.index("Jena")) + n) for n in range(len(name))}
                    for name in ("Jena", "Height"))  # fmt: skip
    assert found[colon - 2] == jena, "from the name on all rests on it"
    assert any(found[token] == height for token in range(colon) if token in found), "of the line that is meant"


def test_the_largest_of_a_text_is_found_before_the_answer_is_read() -> None:
    draft = Draft(language="en")
    draft.ask(f"{TOLD.replace(' m', '')}\nWhich Town has the most Height?", "478 (Ulm)")
    draft.ask("What is the Height of Ulm?", "478")
    sample, evidence = sampled(closed(draft), spells_answers=True)
    ids, found = sample.input_ids.tolist(), by_token(evidence)
    first, second = (place for place, id in enumerate(ids) if id == TOKENIZER.assistant_id)
    assert len(found[first]) == 1
    assert written(sample, list(range(max(found[first]) + 1))).endswith("478"), "where all of it is written"
    written_by = [next(iter(found[first + 1 + n])) for n in range(3)]
    assert [written(sample, [place]) for place in written_by] == list("478"), "then digit by digit"
    assert second not in found, "the question names all that is needed"


def test_the_largest_of_a_chart_is_found_before_the_answer_is_read(tmp_path: Path) -> None:
    inputs, num_found, kinds = str(write_inputs(tmp_path / "inputs")), 0, set[bool]()
    source = Charts(inputs=inputs, languages=("en",), tasks=("extreme",))
    for record in generate(source, 40, seed=3):
        sample, evidence = sampled(record)
        found, ids = groups_by_token(evidence), sample.input_ids.tolist()
        squares = shown_squares(sample.image_sizes[0], sample.grid_list[0], sample.layout.tile_side, TILE_PX)
        slots = sample.image_mask.nonzero().flatten().tolist()
        answers = [message for message in record.messages if message.role == "assistant"]
        for message, place in zip(
            answers, [n for n, id in enumerate(ids) if id == TOKENIZER.assistant_id], strict=True
        ):
            value, _ = (record.objects[number] for number in message.evidence)
            is_printed = value.label in (message.parts[0].text or "")
            kinds.add(is_printed)
            rests_on = [found[place + 1 + n][0] for n in range(len(value.label))] if is_printed else found[place]
            assert len(rests_on) == len(value.boxes_px)
            for places, box in zip(rests_on, value.boxes_px, strict=True):
                shown = squares[[slots.index(at) for at in places]]
                x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
                assert ((shown[:, :2] <= torch.tensor((x, y))) & (torch.tensor((x, y)) <= shown[:, 2:])).all(1).any()
                num_found += 1
    assert num_found > 20
    assert kinds == {True, False}


@pytest.mark.parametrize(
    ("question", "answer", "read", "pointed"),
    [
        ("What is the Height of Jena?", "143 m", ["143 m"], ["Jena", "Height"]),
        ("Which Town is lowest?", "Bonn", ["Bonn"], ["Town"]),
        ("Which Town has the least Height?", "Bonn", ["Bonn"], ["Town", "Height", "60 m"]),
        ("Is it in Jena?", "Yes", [], []),
        ("What letter is in each line?", "m", ["m", "m", "m", "m"], []),
    ],
)
def test_fields_are_found_where_a_question_tells_which(
    question: str, answer: str, read: list[str], pointed: list[str]
) -> None:
    found = fields_of(TOLD, question, answer)
    assert [[TOLD[slice(*place)] for place in places] for places in found] == [read, pointed]


@pytest.mark.parametrize(
    ("answer", "read", "pointed"),
    [
        ("478 (Ulm)", ["478", "Ulm"], ["Town", "Height", "478"]),
        ("143 (Ulm)", [], ["Town", "Height", "478"]),
        ("478 (Rome)", [], []),
    ],
)
def test_a_number_and_whose_it_is_stand_in_one_line(answer: str, read: list[str], pointed: list[str]) -> None:
    told = TOLD.replace(" m", "")
    found = fields_of(told, "Which Town has the greatest Height?", answer)
    assert [[told[slice(*place)] for place in places] for places in found] == [read, pointed]


@pytest.mark.parametrize(
    ("answer", "read", "number"),
    [
        ("478 (Ulm)", ["478", "Ulm"], ["478"]),
        ("$1,143.50 (Jena)", ["$1,143.50", "Jena"], ["$1,143.50"]),
        ("60%（Bonn）", ["60%", "Bonn"], ["60%"]),
        ("60%", ["60%"], ["60%"]),
        ("$1,143.5 (Jena)", [], []),
        ("478 (Jena)", [], []),
        ("7 (Rom)", [], []),
        ("Ulm", ["Ulm"], []),
        ("Rome", [], []),
    ],
)
def test_the_number_of_an_answer_is_found_in_its_question(answer: str, read: list[str], number: list[str]) -> None:
    question = "Ulm 478, Jena $1,143.50, Bonn 60%, Rom 7, Rom 7: which leads?"
    found = compared_in(question, answer)
    assert [[question[slice(*place)] for place in places] for places in found] == [read, number]


def test_the_largest_of_a_list_is_found_before_the_answer_is_read() -> None:
    draft = Draft(language="en")
    draft.ask("Ulm 478, Jena 143: which leads?", "478 (Ulm)")
    draft.ask("Which is the smallest of 52, 810, 31?", "31")
    sample, evidence = sampled(closed(draft), spells_answers=True)
    ids, found = sample.input_ids.tolist(), by_token(evidence)
    assistants = [place for place, id in enumerate(ids) if id == TOKENIZER.assistant_id]
    for assistant, until in zip(assistants, ("Ulm 478", "810, 31"), strict=True):
        (place,) = found[assistant]
        assert written(sample, list(range(place + 1))).endswith(until)


def test_of_equal_fields_the_one_in_the_line_that_the_question_means_is_read() -> None:
    told = "Ann | 1990: 5\nAnn | 1991: 7\nBob | 1990: 7\nBob | 1991: 5"
    (read,), pointed = fields_of(told, "How many for Bob in 1990?", "7")
    assert read[0] == told.index("7", told.index("Bob | 1990"))
    assert [told[slice(*place)] for place in pointed] == ["Bob", "1990"]


def test_a_document_has_no_evidence() -> None:
    document = Message(role="document", parts=(Part(text=TOLD),))
    draft = Draft(language="en", messages=[document])
    assert len(sampled(closed(draft))[1]) == 0


def test_told_records_have_evidence(tmp_path: Path) -> None:
    inputs = str(write_inputs(tmp_path / "inputs"))
    for task in ("table", "chart", "repeat", "lines"):
        records = generate(Told(inputs=inputs, languages=("en",), tasks=(task,)), 6, seed=3)
        found = [sampled(record, spells_answers=True) for record in records]
        for sample, evidence in found:
            for token, places in by_token(evidence).items():
                if any(start <= token + 1 < end for start, end in sample.answers):
                    assert written(sample, [token + 1]) in written(sample, list(places)), "the next letter is there"
        assert any(len(evidence) for _, evidence in found)


def test_evidence_of_packed_samples_keeps_its_tokens() -> None:
    one = Evidence.of([(5, [[2, 3], [0]]), (7, [[2]])])
    other = Evidence.of([(9, [[1]])])
    joined = join([(0, one), (10, Evidence.of([])), (20, other)])
    assert groups_by_token(joined) == {5: [{2, 3}, {0}], 7: [{2}], 29: [{21}]}
    assert torch.equal(joined.token_n, torch.tensor([5, 7, 29]))
