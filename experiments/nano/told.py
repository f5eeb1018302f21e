"""What the other primers show, told in words, with the same questions: a table, bars, a scene, a line to repeat.

Such a text costs a twentieth of a picture, and answering it takes what answering about a picture takes: to find the
name that was asked for among several, and to repeat what stands beside it. A language model that has learned it from
text has only to learn that the pictures tell the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from vl2.synth import words
from vl2.synth.chart import VALUE
from vl2.synth.draft import Draft
from vl2.synth.nouns import article, plural
from vl2.synth.primer_charts import HIGHEST, LOWEST, TITLE, make_bars, make_table
from vl2.synth.primer_lines import phrase, token
from vl2.synth.scene_words import COUNT, PRESENCE
from vl2.synth.source import Dropped, Source
from vl2.synth.sprites import Kind, built_in_kinds, read_kinds, things
from vl2.synth.table_questions import ask_lookup, ask_number, ask_rows
from vl2.synth.text_image import READ, READ_NTH

Asked = tuple[str, str]  # a question and its answer

REPEAT = {
    "en": ("Repeat: {text}", "Say this again: {text}", 'Write down what stands here: "{text}"'),
    "zh": ("请重复：{text}", "照写一遍：{text}", "写出引号里的文字：“{text}”"),
}
YES_NO = {"en": ("Yes.", "No."), "zh": ("有。", "没有。")}  # as of a scene that is shown


@dataclass(frozen=True, kw_only=True)
class Told(Source):
    """Text alone: tasks "table", "bars", "scene", "repeat" and "lines"."""

    name = "primer_told"
    category = "text"
    tasks_known: ClassVar[tuple[str, ...]] = ("table", "bars", "scene", "repeat", "lines")

    languages: tuple[str, ...] = ("en", "zh")
    texts_en: str | None = None  # a text file with one passage a line; None: the built-in ones
    texts_zh: str | None = None
    art: tuple[str, ...] = ()  # folders of sprite sets, for the names; built-in shapes are always among them
    turns: int = 4

    def draft(self, rng: random.Random) -> Draft:
        language = rng.choice(self.languages)
        told, questions = _TELLERS[self.pick_task(rng)](self, rng, language)
        if not questions:
            raise Dropped("no question has one answer")
        draft = Draft(language=language)
        for number, (question, answer) in enumerate(questions[: rng.randint(1, self.turns)]):
            draft.ask(f"{told}\n{question}" if told and number == 0 else question, answer)
        return draft

    def own_licence(self) -> str:
        return "check" if self.texts_en or self.texts_zh or self.art else super().own_licence()

    def words(self, rng: random.Random, language: str, limit: int) -> str:
        """Return a phrase, or something without sense, which only repeating can get right."""
        chosen = rng.random()
        if chosen < 0.25:
            return token(rng)
        if chosen < 0.5:
            glue = "" if language == "zh" else " "
            return glue.join(rng.choice(words.COMMON[language]) for _ in range(rng.randint(2, 5)))
        return phrase(rng, language, self.texts_zh if language == "zh" else self.texts_en, limit)

    def kinds(self) -> tuple[Kind, ...]:
        return (*built_in_kinds(), *(kind for folder in self.art for kind in things(read_kinds(folder))))


def _tell_table(source: Told, rng: random.Random, language: str) -> tuple[str, list[Asked]]:
    table = make_table(rng, language)
    comma = "，" if language == "zh" else ", "
    lines = [comma.join(f"{name} {cell}" for name, cell in zip(table.header, row, strict=True)) for row in table.rows]
    made = [ask_rows(table, rng), ask_number(table, rng, rng.choice(("max", "min")))]
    made = [*(ask_lookup(table, rng) for _ in range(source.turns)), rng.choice(made)]
    rng.shuffle(made)
    return "\n".join(lines), list({a.question: (a.question, a.answer) for a in made if a is not None}.values())


def _tell_bars(source: Told, rng: random.Random, language: str) -> tuple[str, list[Asked]]:
    bars = make_bars(rng, language)
    lines = [f"{name}: {value}" for name, value in zip(bars.names, bars.values, strict=True)]
    asked = [
        (rng.choice(VALUE[language]).format(column=bars.title, row=name), value)
        for name, value in zip(bars.names, bars.values, strict=True)
    ]
    numbers = bars.numbers
    asked.append((rng.choice(HIGHEST[language]), bars.names[numbers.index(max(numbers))]))
    asked.append((rng.choice(LOWEST[language]), bars.names[numbers.index(min(numbers))]))
    asked.append((rng.choice(TITLE[language]), bars.title))
    rng.shuffle(asked)
    return "\n".join((bars.title, *lines)), asked


def _tell_scene(source: Told, rng: random.Random, language: str) -> tuple[str, list[Asked]]:
    pool = source.kinds() if source.art and rng.random() < 0.5 else built_in_kinds()
    chosen = {kind.full_name(language): kind for kind in rng.sample(pool, rng.randint(1, 5))}
    counts = {name: rng.choice((1, 1, 1, 2, 3, 4)) for name in chosen}
    shown = [name for name, count in counts.items() for _ in range(count)]
    rng.shuffle(shown)
    told = "、".join(shown) if language == "zh" else ", ".join(article(name) for name in shown)
    asked = []
    for name, kind in chosen.items():
        noun = name if language == "zh" else plural(name)
        question = rng.choice(COUNT[language]).format(noun=noun, measure=kind.measure_zh)
        asked.append((question, str(counts[name])))
    other = rng.choice(pool).full_name(language)
    for name in (rng.choice(shown), other):
        answer = YES_NO[language][0 if name in counts else 1]
        asked.append((rng.choice(PRESENCE[language]).format(name=name, a_name=article(name)), answer))
    rng.shuffle(asked)
    return told, asked


def _tell_repeat(source: Told, rng: random.Random, language: str) -> tuple[str, list[Asked]]:
    texts = [source.words(rng, language, 12 if language == "zh" else 30) for _ in range(source.turns)]
    return "", [(rng.choice(REPEAT[language]).format(text=text), text) for text in texts]


def _tell_lines(source: Told, rng: random.Random, language: str) -> tuple[str, list[Asked]]:
    lines = [source.words(rng, language, 10 if language == "zh" else 24) for _ in range(rng.randint(1, 5))]
    asked = [(rng.choice(READ_NTH[language]).format(n=at + 1), line) for at, line in enumerate(lines)]
    asked.append((rng.choice(READ[language]), "\n".join(lines)))
    rng.shuffle(asked)
    return "\n".join(lines), asked


_TELLERS: dict[str, Callable[[Told, random.Random, str], tuple[str, list[Asked]]]] = {
    "table": _tell_table,
    "bars": _tell_bars,
    "scene": _tell_scene,
    "repeat": _tell_repeat,
    "lines": _tell_lines,
}
