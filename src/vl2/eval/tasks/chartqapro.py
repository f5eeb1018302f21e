"""ChartQAPro: five kinds of questions about charts and dashboards, some of them unanswerable.

    test-*.parquet (the hub's)    image, Question, Answer, Question Type, Year, Paragraph; of a conversation, the
        first three and Year are lists with an entry per turn
    chartqapro.tsv (VLMEvalKit's)    index, image, question, answer, question_type, year, paragraph

Source: vis-nlp/ChartQAPro, `evaluate_predictions.py`, whose prompts and figures are those of VLMEvalKit.
"""

from __future__ import annotations

from collections.abc import Iterator

from vl2.errors import UserError
from vl2.eval.protocols import ask
from vl2.eval.public_data import Dataset, Row, images_of, is_blank, read_rows, stems_of, texts
from vl2.eval.score.chartqapro import relaxed_correctness
from vl2.eval.task import DataSource, Item, Protocol, Score, Task, mean_score
from vl2.process.conversation import Turn, user_turn

CONVERSATION = "Conversational"
EXACT = ("Fact Checking", "Multi Choice")
_UNANSWERABLE = (
    "If the question is unanswerable based on", "the information in the provided image, your answer should be "
    "unanswerable. Do not generate units.", "But if numerical units such as million, m, billion, B, or K are "
    "required, use the exact notation", "shown in the chart.",
)  # fmt: skip
_WORD = f"Your answer should be a single word, number, or phrase. {_UNANSWERABLE[0]}"
_LAST = (
    "If there are multiple answers, put them in brackets using this format [’Answer1’, ’Answer2’].",
    "Remember to generate the final answer only without any additional text!",
)
# The lines of the direct prompts. The program keeps the indentation of its source, and so do the published figures.
PROMPTS: dict[str, tuple[str, ...]] = {
    "Factoid": (
        "You are given a factoid question that you need to answer based on the provided image.", _WORD,
        *_UNANSWERABLE[1:], *_LAST,
    ),
    "Multi Choice": (
        "You are given a question along with different possible answers. You need to select the correct answer",
        "from them based on the provided image.",
        "Your answer should be one of the options letters only: a, b, c or d (just the letter itself without any",
        "additional text). If the question is unanswerable based on the information in the provided image, your",
        "answer should be unanswerable.", *_LAST,
    ),
    CONVERSATION: (
        "You are given a multi-turn conversation, and your job is to answer the final question based on the",
        "conversation history and the information in the provided image.", _WORD, *_UNANSWERABLE[1:], *_LAST,
    ),
    "Fact Checking": (
        "You are given a fact statement that you need to assess based on the provided image.",
        "Your answer should be either true or false (without any additional text). If the question is",
        "unanswerable based on the information in the provided image, your answer should be unanswerable.", *_LAST,
    ),
    "Hypothetical": (
        "You are given a hypothetical question that you need to answer based on the provided image.", _WORD,
        *_UNANSWERABLE[1:], *_LAST,
    ),
}  # fmt: skip
INDENT = " " * 12


def read(task: Task, source: DataSource) -> Iterator[Item]:
    folder, split = source.folder(task), source.part(task)
    for number, row in enumerate(read_rows(folder, stems_of(split, tsv={"test": "chartqapro"}))):
        named = {name.lower().replace(" ", "_"): value for name, value in row.items()}
        yield _item(named, str(row.get("index", number)), images_of(row.get("image"), folder, str(number)))


def _item(row: Row, id: str, images: tuple[object, ...]) -> Item:
    try:
        questions, golds, years = (texts(row[name]) for name in ("question", "answer", "year"))
        kind = str(row["question_type"])
    except KeyError as missing:
        raise UserError(f"row {id} has no {missing}, it has {', '.join(row)}") from None
    if kind not in PROMPTS:
        raise UserError(f"row {id}: the question type must be one of {', '.join(PROMPTS)}, got {kind!r}")
    if len(golds) < len(questions):
        raise UserError(f"row {id} has {len(questions)} questions and {len(golds)} answers")
    paragraph = row.get("paragraph")
    return Item(
        id=id,
        question=questions[-1],
        images=images,
        gold=golds[-1],
        part=kind,
        notes={
            "before": [list(pair) for pair in zip(questions[:-1], golds[:-1], strict=False)],
            "years": years[-1:] if kind == CONVERSATION else years,
            "paragraph": "" if is_blank(paragraph) else str(paragraph),
        },
    )


def ask_official(item: Item) -> list[Turn]:
    before = item.notes.get("before", [])
    said = f"Conversation: {[text for pair in before for text in pair]} " if item.part == CONVERSATION else ""
    lines = [*PROMPTS.get(item.part, PROMPTS["Factoid"]), f"{said}Question: {item.question}", ""]
    prompt = "\n" + "\n".join(INDENT + line for line in lines)
    return [user_turn(item.notes.get("paragraph", "") + prompt, item.images)]


def ask_lmms(item: Item) -> list[Turn]:
    lines = []
    for number, (question, answer) in enumerate(item.notes.get("before", []), start=1):
        lines += [f"Q{number}: {question.strip()}", f"A{number}: {answer.strip()}"]
    last = item.question.strip()
    text = "\n".join([*lines, f"Q{len(lines) // 2 + 1}: {last}"]) if lines else last
    paragraph = item.notes.get("paragraph", "").strip()
    before = f"Context: {paragraph}\n\n" if paragraph else ""
    return [user_turn(f"{before}{text}\nAnswer the question with a short phrase.", item.images)]


def score_official(item: Item, answer: str) -> Score:
    """Score as the official program does: it does not apply its own rule of exact matches for facts and options."""
    said = answer.strip(".").strip("\n")
    gold = item.gold.strip(".").strip("\n")
    return Score(value=relaxed_correctness(gold, said, item.notes.get("years", ())), read=said)


def score_lmms(item: Item, answer: str) -> Score:
    said, gold = (text.strip().strip(".").strip("\n") for text in (answer, item.gold))
    value = relaxed_correctness(gold, said, item.notes.get("years", ()), is_exact=item.part in EXACT)
    return Score(value=value, read=said)


SAYS = "Relaxed accuracy per listed answer: a number within 5 %, a year exact, other text by ANLS"
TASK = Task(
    name="chartqapro",
    title="ChartQAPro: five kinds of questions about charts",
    layout="reads test-*.parquet (image, Question, Answer, Question Type, Year, Paragraph) or chartqapro.tsv",
    folders=("chartqapro", "ChartQAPro"),
    read=read,
    split="test",
    protocols={
        "vlmevalkit": Protocol(ask=ask_official, score=score_official,
                               says=f"{SAYS}. The official program and VLMEvalKit, direct prompts."),
        "lmms-eval": Protocol(ask=ask_lmms, score=score_lmms, max_new_tokens=128,
                              says=f"{SAYS}; facts and options exactly."),
        "paper": Protocol(ask=ask, score=score_official, max_new_tokens=128, says=f"{SAYS}; the bare question."),
    },
    hub=Dataset("ahmed-masry/ChartQAPro", ("data/{split}-*",)),
    metric=mean_score,
)  # fmt: skip
