"""Group 3: compare our special tokens and chat template with the ids that the `tokenizers` library gives.

The library reads tokenizer.json by itself here, without our own tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer

from vl2.errors import UserError
from vl2.model_kind import ModelKind
from vl2.process.conversation import Turn, user_turn
from vl2.process.processor import Processor
from vl2.process.tokenizer import BOS, EOS, GROUNDING, IMAGE, PAD, Tokenizer
from vl2.verify.check import GROUPS, Check, listed, number_of, passed_if
from vl2.verify.subject import ROLES, VOCABULARIES, Subject, special_tokens

GROUP = GROUPS[2]
TEXTS = (
    "The total is 12.50 EUR, paid by card.",
    "  two  spaces\n\nand\ta tab",
    "第一季度的销售额是多少？",
    "Ünïcödé, naïve, 🙂🇨🇳, مرحبا",
    "def f(x):\n    return x**2  # 1,000,000",
)


@dataclass(frozen=True, kw_only=True)
class TemplateCase:
    """A conversation, and its text in the released chat template."""

    name: str
    turns: tuple[Turn, ...]
    text: str  # without the bos; IMAGE stands for all visual tokens of an image


CONVERSATIONS = (
    TemplateCase(
        name="a question",
        turns=(user_turn("What is 3 + 4?"),),
        text="<|User|>: What is 3 + 4?\n\n<|Assistant|>:",
    ),
    TemplateCase(
        name="a grounding question in Chinese",
        turns=(user_turn("找到<|ref|>淡定姐<|/ref|>"),),
        text="<|User|>: 找到<|ref|>淡定姐<|/ref|>\n\n<|Assistant|>:",
    ),
    TemplateCase(
        name="a question about an image",
        turns=(user_turn("<|grounding|>Describe it.", [Image.new("RGB", (40, 40))]),),
        text="<|User|>: <image>\n<|grounding|>Describe it.\n\n<|Assistant|>:",
    ),
    TemplateCase(
        name="two turns",
        turns=(
            user_turn("Name a color."),
            Turn(role="assistant", pieces=("Blue.",)),
            user_turn("And another one?\nIn one word."),
        ),
        text="<|User|>: Name a color.\n\n<|Assistant|>:Blue.<｜end▁of▁sentence｜>"
        "<|User|>: And another one?\nIn one word.\n\n<|Assistant|>:",
    ),
)


# Prompts that the READMEs of the DeepSeek-OCR family print. They have no template, so the text is the prompt itself.
PROMPTS = (
    TemplateCase(name="a question", turns=(user_turn("Free OCR."),), text="Free OCR."),
    TemplateCase(
        name="a page for Markdown",
        turns=(user_turn("<|grounding|>Convert the document to markdown.", [Image.new("RGB", (40, 40))]),),
        text="<image>\n<|grounding|>Convert the document to markdown.",
    ),
    TemplateCase(
        name="a thing to locate",
        turns=(user_turn("Locate <|ref|>总金额<|/ref|> in the image.", [Image.new("RGB", (40, 40))]),),
        text="<image>\nLocate <|ref|>总金额<|/ref|> in the image.",
    ),
)
# Visual tokens of a small picture: 16 x 16 of its view of 1,024 px, a newline after each row except in DeepSeek-OCR-2,
# and a separator.
_OCR_VISUAL_TOKENS: dict[ModelKind, int] = {"DeepSeek-OCR": 273, "Unlimited-OCR": 273, "DeepSeek-OCR-2": 257}


def read_raw(path: Path, pad_token: str = PAD, kind: ModelKind = "DeepSeek-VL2") -> RawTokenizer:
    """Read a tokenizer.json with the `tokenizers` library, and add special tokens as the released processor does."""
    raw = RawTokenizer.from_file(str(path))
    for token in (pad_token, IMAGE, *GROUNDING, *(ROLES if kind == "DeepSeek-VL2" else ())):
        raw.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    return raw


def check_tokens(subject: Subject) -> list[Check]:
    path = subject.folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(path, has_roles=subject.kind == "DeepSeek-VL2")
        raw = read_raw(path, kind=subject.kind)
    except UserError as error:
        return [Check(group=GROUP, name="tokenizer.json", verdict="fail", found=str(error))]
    return [
        _check_special_ids(subject, raw),
        _check_size(subject, raw),
        _check_template(subject, raw),
        _check_round_trip(tokenizer),
        *_own_template(subject),
    ]


def _check_special_ids(subject: Subject, raw: RawTokenizer) -> Check:
    wrong = []
    for key, token in (("bos_token_id", BOS), ("eos_token_id", EOS)):
        configured_id = None if subject.config is None else getattr(subject.config.language_config, key)
        if configured_id is not None and configured_id != raw.token_to_id(token):
            wrong.append(f"{token} is {raw.token_to_id(token)}, config.json says {configured_id}")
    for token, number in _written_ids(subject.folder / "tokenizer.json").items():
        if raw.token_to_id(token) != number:
            wrong.append(f"{token} is {number} in tokenizer.json, and {raw.token_to_id(token)} once it is read")
    if subject.size is not None:
        expected = VOCABULARIES[subject.size].ids
        wrong += [
            f"{token} is {raw.token_to_id(token)}, {subject.size} has {number}"
            for token, number in expected.items()
            if raw.token_to_id(token) != number
        ]
        right = f"{len(expected)} of {len(expected)} have the ids of {subject.size}"
    else:
        right = "bos and eos have the ids that config.json says"
    found = f"{len(wrong)} wrong: {wrong[0]}" if wrong else right
    ids = [f"{token} {raw.token_to_id(token)}" for token in special_tokens(subject.kind)]
    details = (*listed(wrong[1:]), "  ".join(ids)) if wrong else ("  ".join(ids),)
    return Check(group=GROUP, name="special tokens", verdict=passed_if(not wrong), found=found, details=details)


def _written_ids(path: Path) -> dict[str, int]:
    """Return the ids of added tokens in the file. The library ignores them and numbers the tokens in order."""
    added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens") or []
    return {token["content"]: token["id"] for token in added}


def _check_size(subject: Subject, raw: RawTokenizer) -> Check:
    num_ids = max(raw.get_vocab(with_added_tokens=True).values()) + 1
    found, is_right = f"{num_ids:,} ids", True
    if subject.config is not None:
        rows = subject.config.language_config.vocab_size
        found += f", {rows:,} rows in the token table"
        is_right = num_ids <= rows
    if subject.size is not None:
        expected = VOCABULARIES[subject.size].num_ids
        if expected is not None and num_ids != expected:
            found += f"; {subject.size} has {expected:,} ids"
            is_right = False
    return Check(group=GROUP, name="vocabulary", verdict=passed_if(is_right), found=found)


def _check_template(subject: Subject, raw: RawTokenizer) -> Check:
    """Compare our ids of whole conversations with the library's ids of the released template's text."""
    name = "chat template"
    cases = CONVERSATIONS if subject.kind == "DeepSeek-VL2" else PROMPTS
    try:
        processor = Processor.from_folder(subject.folder)
        wrong = [line for conversation in cases if (line := _difference(conversation, processor, raw))]
    except UserError as error:
        return Check(group=GROUP, name=name, verdict="fail", found=str(error))
    found = wrong[0] if wrong else f"{len(cases)} conversations have the ids of the released template's text"
    return Check(group=GROUP, name=name, verdict=passed_if(not wrong), found=found, details=listed(wrong[1:]))


def _difference(conversation: TemplateCase, processor: Processor, raw: RawTokenizer) -> str:
    """Describe the first difference between our ids and the library's ids of a conversation, or return ""."""
    ours = processor.encode(conversation.turns).input_ids.tolist()
    theirs = released_ids(conversation.text, raw, visual_tokens_of_small_image(processor))
    if ours == theirs:
        return ""
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))

    def shown(ids: Sequence[int]) -> str:
        return str([raw.id_to_token(number) for number in ids[place : place + 4]])

    return (
        f"{conversation.name}: ids differ from position {place} on, ours {shown(ours)} ({len(ours)} ids), "
        f"the library's {shown(theirs)} ({len(theirs)} ids)"
    )


def released_ids(text: str, raw: RawTokenizer, visual_tokens: int) -> list[int]:
    """Return bos and the library's ids of a text, with the image token repeated once for each visual token."""
    image_id = raw.token_to_id(IMAGE)
    bos_id = raw.token_to_id(BOS)
    assert bos_id is not None, BOS
    ids: list[int] = [bos_id]
    for number in raw.encode(text, add_special_tokens=False).ids:
        ids += [number] * visual_tokens if number == image_id else [number]
    return ids


def visual_tokens_of_small_image(processor: Processor) -> int:
    """Return the visual tokens of a small image, which has no tiles or crops.

    DeepSeek-VL2 writes two grids with a newline after each row, and a separator.
    """
    if processor.kind != "DeepSeek-VL2":
        return _OCR_VISUAL_TOKENS[processor.kind]
    side = processor.config.tokens_per_side
    return 2 * side * (side + 1) + 1


def _check_round_trip(tokenizer: Tokenizer) -> Check:
    wrong = [text for text in TEXTS if tokenizer.decode(tokenizer.encode(text)) != text]
    found = f"{number_of(len(TEXTS), 'text')}, with Chinese, Arabic and emoji, come back unchanged"
    if wrong:
        found = f"{len(wrong)} of {len(TEXTS)} texts do not come back: {wrong[0]!r}"
    return Check(group=GROUP, name="text to ids and back", verdict=passed_if(not wrong), found=found)


def _own_template(subject: Subject) -> list[Check]:
    """Report a chat template in tokenizer_config.json, which the released processor does not use."""
    try:
        values = json.loads((subject.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    template = values.get("chat_template") if isinstance(values, dict) else None
    if not isinstance(template, str):
        return []
    digest = hashlib.sha256(template.encode()).hexdigest()[:16]
    found = f"{len(template)} characters, sha256 {digest}: the released processor has its own template and ignores this"
    name = "chat_template in tokenizer_config.json"
    details = listed(template.splitlines())
    return [Check(group=GROUP, name=name, verdict="not checked", found=found, details=details)]
