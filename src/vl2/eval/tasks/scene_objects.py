"""Tasks on scenes composed of sprites or shapes: locate an object, count objects, say whether an object is present."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

from vl2.eval.drawn import draw_items, png, sprite_folder
from vl2.eval.protocols import ask, score_exact, score_first_box, score_yes_no
from vl2.eval.score.yes_no import pope_scores
from vl2.eval.task import DataSource, Item, Protocol, Result, Task, mean_score
from vl2.infer.prompts import locate_prompt
from vl2.synth.nouns import article, plural
from vl2.synth.primer_scene import PrimerScene
from vl2.synth.scene import Composed
from vl2.synth.scene_words import COUNT, PRESENCE
from vl2.synth.source import Dropped
from vl2.synth.sprites import Kind, things

LANGUAGES = ("en", "zh")
SETS = ("openmoji",)  # sprite sets held out for tests; without one, the built-in shapes are drawn
_LAYOUT = "is drawn from the sprite set in --data (openmoji), else from the built-in shapes"

Asked = tuple[str, object]  # (question, gold answer)
Compose = Callable[[Composed, Sequence[Kind], Random, str], Asked]


def read_with(make: Compose) -> Callable[[Task, DataSource], Iterator[Item]]:
    """Return a reader that draws scenes and asks about each in one of the two languages."""

    def read(task: Task, data_source: DataSource) -> Iterator[Item]:
        source = PrimerScene(art=sprite_folder(data_source, *SETS))
        pool = things(source.kinds())

        def draw(rng: Random, id: str) -> Item:
            language = rng.choice(LANGUAGES)
            composed = source.compose(rng)
            question, gold = make(composed, pool, rng, language)
            notes = {"size": list(composed.image.size)}
            return Item(id=id, question=question, images=(png(composed.image),), gold=gold, part=language, notes=notes)

        return draw_items(task, draw)

    return read


def _locate(composed: Composed, pool: Sequence[Kind], rng: Random, language: str) -> Asked:
    single = [kind for kind in composed.kinds() if len(composed.boxes(language, kind.full_name(language))) == 1]
    if not single:
        raise Dropped("nothing occurs once")
    label = rng.choice(single).full_name(language)
    return locate_prompt(label), [list(composed.boxes(language, label)[0])]


def _count(composed: Composed, pool: Sequence[Kind], rng: Random, language: str) -> Asked:
    kind = rng.choice(composed.kinds())
    label = kind.full_name(language)
    noun = label if language == "zh" else plural(label)
    question = COUNT[language][0].format(noun=noun, measure=kind.measure_zh)
    return question, [str(len(composed.boxes(language, label)))]


def _presence(composed: Composed, pool: Sequence[Kind], rng: Random, language: str) -> Asked:
    is_there = rng.random() < 0.5
    shown = {kind.full_name(language) for kind in composed.kinds()}
    missing = [kind for kind in pool if kind.full_name(language) not in shown]
    kind = rng.choice(composed.kinds() if is_there or not missing else missing)
    name = kind.full_name(language)
    question = PRESENCE[language][0].format(name=name, a_name=article(name))
    return question, "yes" if name in shown else "no"


def presence_metric(results: Sequence[Result]) -> dict[str, float]:
    scores = pope_scores([(r.read, r.gold) for r in results])
    return {"accuracy": scores.pop("accuracy"), **scores}


LOCATE = Task(
    name="locate_objects",
    title="Locate the object with a given name in a composed scene",
    layout=_LAYOUT,
    read=read_with(_locate),
    protocols={
        "vl2": Protocol(ask=ask, score=score_first_box, max_new_tokens=96,
                        says="The first box must have IoU 0.5 with the object's box.")
    },
    metric=mean_score,
    count=200,
)  # fmt: skip
COUNT_TASK = Task(
    name="count_objects",
    title="Count the objects with a given name in a composed scene",
    layout=_LAYOUT,
    read=read_with(_count),
    protocols={
        "vl2": Protocol(ask=ask, score=score_exact, says="The number must be exact, in digits.", max_new_tokens=16)
    },
    metric=mean_score,
    count=200,
)
PRESENCE_TASK = Task(
    name="presence",
    title="Is an object in a composed scene (as POPE asks)",
    layout=_LAYOUT,
    read=read_with(_presence),
    protocols={"vl2": Protocol(ask=ask, score=score_yes_no, says="The first word must be the correct yes or no.",
                               max_new_tokens=16)},
    metric=presence_metric,
    is_mean=True,
    count=200,
)  # fmt: skip
