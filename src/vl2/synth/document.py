"""Draw letters and notices, some with a stamp, and ask about their facts over several turns or for a transcription."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from vl2.synth import fonts, words
from vl2.synth.builtin_inputs import missing_texts
from vl2.synth.draft import Draft
from vl2.synth.page import Page, ink_for, line_height, make_paper, text_width, wrap
from vl2.synth.photograph import take_picture
from vl2.synth.source import UNKNOWN_LICENCE, Dropped, Source
from vl2.synth.stamp import Stamp, draw_stamp, press
from vl2.synth.text_image import cut, whole_sentences

# Each letter has a subject, paragraphs, and questions with their answers. Names in braces are replaced by facts.
LETTERS = {
    "en": (
        (
            "Your order {number}",
            (
                "Dear {receiver},",
                "Thank you for your order {number}. We sent {count} boxes of {thing} to {city} today. They should "
                "reach you by {deadline}.",
                "The amount of {amount} is due within {days} days.",
                "Kind regards,",
                "{sender}",
            ),
            {
                "How many boxes were sent?": "{count}",
                "What was ordered?": "{thing}",
                "What amount is due?": "{amount}",
                "Within how many days must it be paid?": "{days}",
                "By when should the order arrive?": "{deadline}",
                "Where were the boxes sent?": "{city}",
            },
        ),
        (
            "Invitation to a meeting",
            (
                "Dear {receiver},",
                "We invite you to our yearly meeting on {deadline} in {city}. It begins at {time} in room {room}.",
                "Please tell us within {days} days whether you will come. Lunch costs {lunch}.",
                "Sincerely,",
                "{sender}",
            ),
            {
                "When is the meeting?": "{deadline}",
                "In which city is the meeting?": "{city}",
                "At what time does it begin?": "{time}",
                "In which room is it?": "{room}",
                "How much is lunch?": "{lunch}",
            },
        ),
        (
            "Notice of building work",
            (
                "To all tenants,",
                "From {deadline} on, the windows of floor {floor} will be replaced. The work takes about {days} days "
                "and begins at {time} each morning.",
                "For questions call {receiver} at {phone}.",
                "{sender}, House Management",
            ),
            {
                "When does the work begin?": "{deadline}",
                "Which floor is concerned?": "{floor}",
                "About how many days does the work take?": "{days}",
                "Who answers questions?": "{receiver}",
                "Which number can be called?": "{phone}",
            },
        ),
    ),
    "zh": (
        (
            "关于订单{number}",
            (
                "{receiver}您好：",
                "感谢您的订单{number}。我们今天已向{city}寄出{count}箱{thing}，预计{deadline}前送达。",
                "货款{amount}元，请在{days}天内支付。",
                "此致敬礼",
                "{sender}",
            ),
            {
                "寄出了多少箱？": "{count}",
                "订购的是什么？": "{thing}",
                "货款是多少元？": "{amount}",
                "需要在多少天内付款？": "{days}",
                "货物寄往哪里？": "{city}",
                "预计什么时候送达？": "{deadline}",
            },
        ),
        (
            "会议通知",
            (
                "{receiver}您好：",
                "兹定于{deadline}在{city}召开年度会议，{time}开始，地点为{room}会议室。",
                "请在{days}天内回复是否参加。午餐费用为{lunch}元。",
                "{sender}",
            ),
            {
                "会议在哪一天召开？": "{deadline}",
                "会议在哪个城市？": "{city}",
                "会议几点开始？": "{time}",
                "在哪个会议室？": "{room}",
                "午餐费用是多少元？": "{lunch}",
            },
        ),
    ),
}
COMMON_QUESTIONS = {
    "en": {
        "Who signed the letter?": "{sender}",
        "What is the date of the letter?": "{date}",
        "What is it about?": "{subject}",
    },
    "zh": {"落款人是谁？": "{sender}", "信的日期是哪一天？": "{date}", "标题是什么？": "{subject}"},
}
PARAGRAPH_CHARS = {"en": 360, "zh": 130}
ASK_STAMP = {"en": "What does the stamp on the letter say?", "zh": "信上的印章写的是什么？"}
READ = {"en": "Transcribe the whole page.", "zh": "请抄录整页文字。"}


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A letter with its facts filled in."""

    date: str
    subject: str
    paragraphs: tuple[str, ...]
    answers: dict[str, str]  # question -> answer


def write_letter(rng: random.Random, language: str, texts: str | None = None) -> Letter:
    """Return a random letter. With `texts`, a text file or a corpus, its second paragraph is from there."""
    facts = {
        "receiver": words.name(rng, language), "sender": words.name(rng, language), "date": words.date(rng, language),
        "city": rng.choice(words.CITIES[language]), "deadline": words.date(rng, language),
        "number": f"{rng.choice('KLMNPR')}{rng.randint(1000, 99999)}", "count": str(rng.randint(2, 48)),
        "thing": rng.choice(words.GOODS[language]), "amount": f"{rng.randint(5, 900)}.{rng.randint(0, 99):02d}",
        "days": str(rng.choice((5, 7, 10, 14, 21, 30))), "time": f"{rng.randint(7, 19)}:{rng.choice((15, 30, 45))}",
        "room": f"{rng.choice('ABC')}{rng.randint(1, 40)}", "floor": str(rng.randint(1, 24)), "phone": words.phone(rng),
        "lunch": f"{rng.randint(6, 24)}.{rng.choice((0, 50)):02d}",
    }  # fmt: skip
    subject, paragraphs, questions = rng.choice(LETTERS[language])
    facts["subject"] = subject.format(**facts)
    asked = {**questions, **COMMON_QUESTIONS[language]}
    filled = [paragraph.format(**facts) for paragraph in paragraphs]
    if texts is not None:
        passage = words.choose_passage(rng, language, texts)
        filled.insert(2, whole_sentences(cut(rng, passage, language, PARAGRAPH_CHARS[language], from_start=True)))
    return Letter(
        date=facts["date"],
        subject=facts["subject"],
        paragraphs=tuple(filled),
        answers={question: answer.format(**facts) for question, answer in asked.items()},
    )


@dataclass(frozen=True, kw_only=True)
class Document(Source):
    """Letters and notices: two to four questions in one conversation, or the whole page as text."""

    name = "document"
    category = "document"
    tasks_known: ClassVar[tuple[str, ...]] = ("questions", "read")

    texts_en: str | None = None  # a text file with a passage per line, or a corpus: one paragraph is from there
    texts_zh: str | None = None
    font_folders: tuple[str, ...] | None = None
    languages: tuple[str, ...] = ("en", "zh")
    max_distortions: int = 2
    photographed: float = 0.3
    stamped: float = 0.3  # share of the letters with questions that have a stamp

    def own_licence(self) -> str:
        return UNKNOWN_LICENCE if self.texts_en or self.texts_zh else super().own_licence()

    def builtin_inputs(self) -> tuple[str, ...]:
        return missing_texts(self.languages, self.texts_en, self.texts_zh, self.font_folders)

    def draft(self, rng: random.Random) -> Draft:
        language = rng.choice([lang for lang in self.languages if lang in fonts.languages(self.font_folders)] or ["en"])
        task = self.pick_task(rng)
        letter = write_letter(rng, language, self.texts_zh if language == "zh" else self.texts_en)
        face = fonts.choose_face(rng, letter.date + letter.subject + "".join(letter.paragraphs), self.font_folders)
        if face is None:
            raise Dropped("no font covers the text")
        page, lines = _draw(letter, language, fonts.load(face, rng.randint(15, 22)), rng)
        # A transcription has the text of the letter only.
        stamp = None
        if task == "questions" and rng.random() < self.stamped:
            stamp = _stamp(page, rng, language, self.font_folders)
        picture = take_picture(page.image, rng, max_distortions=self.max_distortions, photographed=self.photographed)
        traits = {"task": task, "font": face.name, "distortion": "+".join(picture.names)}
        draft = Draft(language=language, traits=traits)
        draft.picture(picture.image, jpeg_quality=picture.jpeg_quality)
        if task == "read":
            draft.category = "ocr"
            draft.ask(READ[language], "\n".join(lines))
        else:
            for question in rng.sample(sorted(letter.answers), rng.randint(2, 4)):
                draft.ask(question, letter.answers[question])
            if stamp is not None:
                draft.ask(ASK_STAMP[language], stamp.text)
        return draft


def _stamp(page: Page, rng: random.Random, language: str, folders: tuple[str, ...] | None) -> Stamp | None:
    """Stamp the lower right of the page, and return the stamp, or None if there is no room for it."""
    stamp = draw_stamp(rng, language, folders)
    if stamp is None:
        return None
    width, height = page.image.size
    # It may cover the end of the last line, through which the text can be seen.
    area = (width * 0.4, height - stamp.mask.height * 1.2, width, height)
    return stamp if press(page.image, stamp, rng, area) is not None else None


def _draw(letter: Letter, language: str, font: fonts.Font, rng: random.Random) -> tuple[Page, list[str]]:
    """Draw a letter, and return the page with its lines of text in reading order."""
    inner, margin = rng.randint(380, 560), rng.randint(28, 60)
    step = round(line_height(font) * rng.uniform(1.15, 1.4))
    blocks = [wrap(text, font, inner, language) for text in letter.paragraphs]
    head = wrap(letter.subject, font, inner, language)
    inner = max(inner, *(text_width(font, line) for block in (*blocks, head) for line in block))
    count = sum(len(block) + 0.5 for block in blocks) + len(head) + 3.5
    # The foot of the page is blank, as on most letters.
    size = (inner + 2 * margin, round(step * (count + rng.uniform(0, 6))) + 2 * margin)
    kind = rng.choice(("white", "plain", "noise", "gradient", "folded", "lined"))
    page, ink = Page(make_paper(kind, size, rng)), ink_for(kind, rng)
    page.write((size[0] - margin, margin), letter.date, font, ink, "ra")
    y: float = margin + 2 * step
    for line in head:
        box = page.write((margin, y), line, font, ink)
        page.draw.line((box[0], box[3] + 2, box[2], box[3] + 2), fill=ink)
        y += step
    y += step / 2
    for block in blocks:
        for line in block:
            page.write((margin, y), line, font, ink)
            y += step
        y += step / 2
    return page, [letter.date, *head, *(line for block in blocks for line in block)]
