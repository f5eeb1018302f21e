"""MMMU: college-level multiple choice about several images.

    validation-*.parquet or SUBJECT/validation-*.parquet (the release's)    id, question, options, image_1 ..., answer
    MMMU_DEV_VAL.tsv (VLMEvalKit's)    index, image, question, A to I, answer, category, split

The published figures (40.7, 48.0 and 51.1 on the validation split) are those of VLMEvalKit's adapter for this model.
The adapter rewrites the benchmark's prompt and doubles the sides of the first image, which gives that image a finer
grid. With the plain prompt the small size scores about 12 points lower.

Source: VLMEvalKit, vlm/deepseek_vl2.py and the MMMU prompt of its multiple-choice dataset.
"""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from PIL import Image

from vl2.datasets.question_answers import OPTION_LETTER, SHORT_ANSWER
from vl2.errors import UserError
from vl2.eval.protocols import judge_by_letter, lettered, letters
from vl2.eval.public_data import Dataset, golds_of, images_of, options_of, read_rows, stems_of
from vl2.eval.score.multiple_choice import is_open_answer_right, mmmu_letter, vlmevalkit_letter
from vl2.eval.task import OTHER_SPLIT, DataSource, Item, LeftOut, Protocol, Score, Task, mean_score
from vl2.process.conversation import Turn, user_turn
from vl2.process.image import open_image
from vl2.process.messages import released_prompt

ProtocolName = Literal["vlmevalkit", "plain"]

PUBLISHED_PROTOCOL: ProtocolName = "vlmevalkit"
MAX_NEW_TOKENS = 512  # greedy
WITHHELD = "?"  # the answer of all questions of the test split

CHOOSE = "Please select the correct answer from the options above."
CHOOSE_REWRITTEN = (
    "Answer with the option's letter from the given choices directly. "
    "Answer the question using a single word or phrase.\n"
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question; `<image k>` in its text or options stands for the k-th image."""

    text: str
    options: Sequence[str]
    images: Sequence[Image.Image]


def plain_prompt(question: Question) -> str:
    """Return the benchmark's own prompt, with its `<image k>` marks."""
    lines = [f"Question: {question.text}"]
    if question.options:
        lines += ["Options:", *(f"{string.ascii_uppercase[i]}. {o}" for i, o in enumerate(question.options)), CHOOSE]
    return "\n".join(lines) + "\n"


def turns_of(question: Question, protocol: ProtocolName = PUBLISHED_PROTOCOL) -> list[Turn]:
    """Return the conversation that asks a question, in the released format with an empty turn for the answer."""
    if protocol not in get_args(ProtocolName):
        raise UserError(f"MMMU's protocols are {', '.join(get_args(ProtocolName))}, got {protocol}")
    prompt, images = plain_prompt(question), list(question.images)
    if protocol == "vlmevalkit":
        content, images = rewrite_for_adapter(prompt, images)
    else:
        order = [int(number) - 1 for number in re.findall(r"<image (\d+)>", prompt)]
        if any(not 0 <= index < len(images) for index in order):
            raise UserError(f"the question refers to image {max(order) + 1}, but it has {len(images)}")
        content = re.sub(r"<image \d+>", "<image>\n", prompt)
        images = [images[index] for index in order]
    return [
        Turn(role="user", pieces=released_prompt(content, images), is_released=True),
        Turn(role="assistant", pieces=(), is_released=True),
    ]


def rewrite_for_adapter(prompt: str, images: Sequence[Image.Image]) -> tuple[str, list[Image.Image]]:
    """Rewrite a prompt and its images as VLMEvalKit's adapter does for this benchmark."""
    # All images come first; the marks `<image k>` stay in the text as words.
    prompt = prompt.replace(CHOOSE, CHOOSE_REWRITTEN).replace("Question:", "").replace("Options:\n", "")
    changed = [_doubled(image) for image in images[:1]] + list(images[1:])
    return "<image>" * len(changed) + "\n" + prompt, changed


def read_answer(text: str) -> str:
    """Return the answer as the adapter passes it to the scorer: without trailing periods."""
    return text.rstrip(".")


def _doubled(image: Image.Image) -> Image.Image:
    return image.resize((2 * image.width, 2 * image.height), Image.Resampling.BILINEAR)


def read(task: Task, source: DataSource) -> Iterator[Item | LeftOut]:
    folder, split = source.folder(task), source.part(task)
    tsv = dict.fromkeys(("dev", "validation"), "MMMU_DEV_VAL")
    stems = stems_of(split, tsv=tsv, folders=("", "data/", "*/"))
    for row in read_rows(folder, stems, ("question", "answer")):
        if "index" in row and row.get("split", split) != split:
            yield OTHER_SPLIT
            continue
        id = str(row.get("id", row.get("index")))
        if "image_1" in row:
            cells = [row[f"image_{k}"] for k in range(1, 8) if row.get(f"image_{k}") is not None]
        else:
            cells = [row["image"]]
        yield Item(
            id=id,
            question=row["question"],
            images=images_of(cells, folder, id),
            gold=[] if row["answer"] == WITHHELD else golds_of(row["answer"]),
            options=_options(row),
            part=str(row.get("category", re.sub(r"^\w+?_(.+)_\d+$", r"\1", id))),
        )


def _options(row: dict[str, Any]) -> tuple[str, ...]:
    if "options" not in row:
        return options_of(row)
    found = row["options"]
    if isinstance(found, str):
        try:
            found = ast.literal_eval(found)  # the release writes a list as Python text
        except (ValueError, SyntaxError):
            raise UserError(f"options must be a list, got {found!r:.60}") from None
    return tuple(str(option) for option in found)


def _question(item: Item) -> Question:
    return Question(text=item.question, options=item.options, images=[open_image(image) for image in item.images])


def ask_lmms(item: Item) -> list[Turn]:
    """Ask as lmms-eval does: images first; the marks `<image k>` stay in the text as words."""
    asked = (
        f"{item.question}\n{lettered(item.options)}\n\n{OPTION_LETTER}"
        if item.options
        else f"{item.question}\n\n{SHORT_ANSWER}"
    )
    return [user_turn(asked, item.images)]


def score_vlmevalkit(item: Item, answer: str) -> Score:
    said = vlmevalkit_letter(read_answer(answer), _choices(item))
    return Score(value=float(bool(said) and said == _gold_letter(item)), read=said, is_undecided=not said)


def _choices(item: Item) -> dict[str, str]:
    """Return the options by letter. For an open question A is the gold answer and B any other answer."""
    return letters(item) or {"A": str(item.gold[0]) if item.gold else WITHHELD, "B": "Other Answers"}


def _gold_letter(item: Item) -> str:
    if not item.gold:
        return ""
    return str(item.gold[0]) if item.options else "A"


def score_lmms(item: Item, answer: str) -> Score:
    if not item.options:
        return Score(value=float(is_open_answer_right(answer, item.gold)), read=answer)
    said = mmmu_letter(answer, letters(item))
    return Score(value=float(bool(said) and said == _gold_letter(item)), read=said)


TASK = Task(
    name="mmmu",
    title="MMMU (validation): college-level questions about images",
    layout="reads validation-*.parquet, SUBJECT/validation-*.parquet or MMMU_DEV_VAL.tsv",
    folders=("mmmu", "MMMU"),
    read=read,
    split="validation",
    protocols={
        "vlmevalkit": Protocol(
            ask=lambda item: turns_of(_question(item), "vlmevalkit"),
            score=score_vlmevalkit,
            says="The adapter doubles the sides of the first image and rewrites the prompt; a letter is read from the "
            "answer. Answers without a letter go to a judge, and count as wrong without one.",
            max_new_tokens=MAX_NEW_TOKENS,
            judge=judge_by_letter(_choices, _gold_letter),
        ),
        "paper": Protocol(
            ask=lambda item: turns_of(_question(item), "plain"),
            score=score_lmms,
            says="The benchmark's own prompt, with images where the text refers to them; read by MMMU's parser.",
            max_new_tokens=128,
        ),
        "lmms-eval": Protocol(
            ask=ask_lmms,
            score=score_lmms,
            says="MMMU's own parser; if it finds nothing it draws a letter at random, which counts as wrong here.",
            max_new_tokens=128,
        ),
    },
    published_by=PUBLISHED_PROTOCOL,
    published="mmmu",
    hub=Dataset("MMMU/MMMU", ("*/{split}-*",)),
    metric=mean_score,
)
