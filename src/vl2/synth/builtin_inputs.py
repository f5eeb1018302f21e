"""The limit on pictures of the few built-in sentences and tables, which teach a model to recite instead of to read."""

from __future__ import annotations

from collections.abc import Sequence

from vl2.errors import UserError
from vl2.synth import fonts
from vl2.synth.source import Source

# There are 10 sentences per language, some 100 single words and 5 tables. In 1,000 pictures each sentence is shown some
# 40 times, which is enough to try a source or a training run. More pictures hardly add an answer that was not seen.
MAX_BUILTIN = 1000


def missing_texts(
    languages: Sequence[str], texts_en: str | None, texts_zh: str | None, folders: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Return the names of the text settings that are not set, of those languages that the fonts can draw."""
    texts = {"en": texts_en, "zh": texts_zh}
    drawn = [language for language in languages if language in fonts.languages(folders)]
    return tuple(f"texts_{language}" for language in drawn if not texts[language])


def check_inputs(source: Source, count: int, *, what: str = "", allow: bool = False) -> None:
    """Raise UserError if more than MAX_BUILTIN pictures would be drawn from built-in texts or tables.

    `what` names the source in the error; `allow` accepts any number.
    """
    missing = source.builtin_inputs()
    if allow or count <= MAX_BUILTIN or not missing:
        return
    kind = "tables" if missing == ("tables",) else "sentences"
    raise UserError(
        f"{what or source.name} would draw {count:,} pictures from the few built-in {kind}, more than {MAX_BUILTIN:,}: "
        f"set {' and '.join(missing)} to real ones, or give --allow-builtin-texts"
    )
