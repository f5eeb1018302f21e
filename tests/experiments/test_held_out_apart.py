"""The held-out tests of the built-in model share nothing with its training that two sides can keep apart.

What they must share: letters and digits; the names of shapes, colors and emoji, which are the classes asked about;
common words of English in running text and of the templates; the prompt that asks for a box; the questions that come
with easy-VQA and NLVR; and sizes in general, since training is to cover all sizes of a range. What is held instead: no
list, no label, no phrasing, no font, no style of emoji, and no fixed size of a scene or a chart.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.nano import splits
from experiments.nano.draw.held_out import is_held_out_phrasing
from experiments.nano.draw.phrasing import INNERMOST, as_sentence, grammars, options
from experiments.nano.held_out import charts, fonts, lines, phrasings, scenes, word_lists
from experiments.nano.inputs.layout import TEST_FONTS
from experiments.nano.inputs.pins import read_pins
from experiments.nano.plan import read_run
from tests.experiments.nano_inputs import write_inputs
from vl2.synth.catalog import make_source
from vl2.synth.source import generate

ROOT = Path(__file__).parents[2]
NANO = ROOT / "experiments" / "nano"
HELD_OUT = NANO / "held_out"
OF_FILES = ("real", "photographs", "emoji")  # sources whose names hold these need pictures that are not here
DRAWS = 20  # of each source of training

pytestmark = pytest.mark.usefixtures("no_system_fonts")


def training_modules() -> list[Path]:
    nano = [path for path in NANO.rglob("*.py") if HELD_OUT not in path.parents and path.name != "splits.py"]
    return [*nano, *(ROOT / "src/vl2/synth").rglob("*.py"), *(ROOT / "src/vl2/datasets").rglob("*.py")]


def texts_in(path: Path) -> Iterator[str]:
    """Yield every text that a module's code holds, without its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):  # an f-string, with {} for what is filled in
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def plain(phrase: str) -> str:
    """Return a phrasing without what is filled in, marks and case."""
    return " ".join(re.findall(r"\w+", re.sub(r"\{.*?\}", " ", phrase).casefold()))


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    return write_inputs(tmp_path / "inputs")


@pytest.fixture(scope="module")
def training_texts() -> set[str]:
    return {text for path in training_modules() for text in texts_in(path)}


def held_out_phrases() -> list[str]:
    asked = [text for phrases in phrasings.PHRASES.values() for texts in phrases.values() for text in texts]
    return [*asked, *(text for texts in phrasings.DEMO.values() for text in texts), *phrasings.UNANSWERABLE]


def test_training_has_texts_and_fonts_to_compare_with(training_texts: set[str]) -> None:
    assert {"What is this?", "Lisbon", "图中有{name}吗？"} <= training_texts
    assert len(font_packages_of_training()) > 10


def test_words_are_those_that_training_leaves_out(training_texts: set[str]) -> None:
    taken = {text.casefold() for text in training_texts}
    for name, words in word_lists.WORD_LISTS.items():
        assert len(words) == len(set(words)) >= 35, name
        assert [word for word in words if not splits.is_test_word(word)] == [], name
        assert [word for word in words if word.casefold() in taken] == [], name


def test_one_word_in_five_is_the_tests() -> None:
    words = [f"word{n}" for n in range(2000)]
    assert 340 < sum(map(splits.is_test_word, words)) < 460


def test_no_phrasing_stands_in_training(training_texts: set[str]) -> None:
    taken = {plain(text) for text in training_texts}
    assert [phrase for phrase in held_out_phrases() if plain(phrase) and plain(phrase) in taken] == []


def every(grammar: str) -> Iterator[str]:
    """Yield all sentences of a grammar."""
    found = INNERMOST.search(grammar)
    if found is None:
        yield as_sentence(grammar)
        return
    for option in options(found):
        yield from every(grammar[: found.start()] + option + grammar[found.end() :])


def asked_by_training() -> Iterator[str]:
    """Yield all ways in which the grammars of training ask, with nothing filled in."""
    for by_language in grammars().values():
        for line in (line for lines_of in by_language.values() for line in lines_of):
            yield from (sentence for sentence in every(line) if not is_held_out_phrasing(sentence))


def test_no_phrasing_is_drawn_by_training(inputs: Path) -> None:
    ours = {plain(phrase) for phrase in held_out_phrases()} - {""}
    asked = {plain(question) for question, _ in drawn_by_training(inputs)}
    assert len(asked) > 50
    assert ours.isdisjoint(asked)
    can_be_asked = set(map(plain, asked_by_training()))
    assert len(can_be_asked) > 5_000
    assert sorted(ours & can_be_asked) == []


def test_templates_of_lines_stand_in_no_list(training_texts: set[str]) -> None:
    def shape(template: str) -> str:
        return " ".join(re.findall(r"\w+", re.sub(r"\{.*?\}", " _ ", template).casefold()))

    taken = {shape(text) for text in training_texts}
    templates = (*lines.SHORT_EN, *lines.LONG_EN, *lines.SHORT_ZH)
    # "{n} and {n}" says nothing of its own: every list of two things looks so.
    told = [text for text in templates if len(plain(text)) > 3]
    assert len(told) >= 20
    assert [text for text in told if shape(text) in taken] == []


def assigned(word: str, without: str) -> Iterator[str]:
    """Yield the texts that modules of training give to names that hold one word and not another."""
    for path in training_modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
                if any(word in name.upper() and without not in name.upper() for name in names):
                    found = (n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant))
                    yield from (text for text in found if isinstance(text, str))


def font_packages_of_training() -> set[str]:
    """Return the names of packages without the registry's prefix: "lato" of Debian's fonts-lato."""
    pinned = {pin.name for pin in read_pins() if pin.name.startswith(("fonts-", "@fontsource/"))} - set(TEST_FONTS)
    return {name.removeprefix("fonts-").removeprefix("@fontsource/") for name in pinned}


def test_fonts_are_not_those_of_training() -> None:
    packages = {name.removeprefix("fonts-") for of_language in fonts.FILES.values() for name in of_language}
    trained = font_packages_of_training()
    assert {"lato", "poppins"} <= trained
    # Neither the package nor a relative: beside Cabin there are Cabin Condensed and Cabin Sketch.
    families = {name if name.startswith(("gfs-", "wqy-")) else name.split("-")[0] for name in packages} | {"rasa"}
    assert [name for name in trained if any(f"{name}-".startswith(f"{family}-") for family in families)] == []
    files = {Path(name).stem for packages in fonts.FILES.values() for names in packages.values() for name in names}
    assert files.isdisjoint(Path(text).stem for text in assigned("FONT", "TEST"))


def test_the_style_of_emoji_is_in_no_recipe() -> None:
    assert "openmoji" not in (NANO / "recipe.toml").read_text(encoding="utf-8").casefold()
    assert "noto" in set(assigned("ART", "TEST"))
    assert "openmoji" not in set(assigned("ART", "TEST"))


def drawn_by_training(inputs: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each question, and the size of its picture, of a few records of every source that the recipe draws."""
    for name, entry in read_run(NANO / "recipe.toml").sources.items():
        if not entry.draw or any(part in name for part in OF_FILES):
            continue
        settings = {"inputs": str(inputs), **entry.settings, "languages": ["en"]}
        for record in generate(make_source(entry.draw, settings), DRAWS, seed=7):
            for message in record.messages:
                if message.role == "user":
                    for image in record.images:
                        yield message.parts[-1].text or "", (image.width, image.height)


def test_fixed_sizes_are_not_those_of_training(inputs: Path) -> None:
    sizes = {size for _, size in drawn_by_training(inputs)}
    assert len(sizes) > 50
    assert sizes.isdisjoint(scenes.SIZES)
    assert sizes.isdisjoint(charts.SIZES)


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    plainly = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    sources = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return plainly | sources


def test_neither_side_imports_the_other() -> None:
    for path in HELD_OUT.rglob("*.py"):
        for name in imports_of(path):
            assert not name.startswith("vl2.synth"), f"{path.name} imports {name}"
            if name.startswith("experiments.") and not name.startswith("experiments.nano.held_out"):
                assert name == "experiments.nano.splits", f"{path.name} imports {name}"
    for path in training_modules():
        assert not [name for name in imports_of(path) if "nano.held_out" in name], path.name
