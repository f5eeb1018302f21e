"""Train the tokenizer of the built-in model: 4,096 ids, byte-level BPE, the released special tokens.

    python -m experiments.nano.train_tokenizer TEXT [TEXT ...] --output src/vl2/nano/tokenizer.json

A source is a .txt file, or a .parquet file with a column `text` or a column `lines` of structs with a
field `text`. `PATH:N` reads the source N times, which moves the share of the vocabulary that it gets.
The same sources give the same file, byte for byte. Parquet needs pyarrow.

Ids: 0..2 begin, end and pad; 3..4087 bytes and merges; 4088..4095 image, grounding and role tokens.
The rules of the released tokenizer apply but for two: every digit is a token of its own, so that
numbers and box coordinates are spelled; and a comma and blank between digits stay together, which
spares three tokens in every box.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
FIRST_IDS = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
LAST_IDS = (
    "<image>",
    "<|ref|>",
    "<|/ref|>",
    "<|det|>",
    "<|/det|>",
    "<|grounding|>",
    "<|User|>",
    "<|Assistant|>",
)

DIGITS = r"\p{N}"
CJK = "[一-龥぀-ゟ゠-ヿ]+"
WORDS = (
    # The first branch matches a whole piece: between two digits, since both are cut off already.
    r"""\A, \z|[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)

# What users ask, repeated so that the words of the usual questions are whole tokens. The Chinese
# ones stand as single characters: they should become tokens, whole sentences should not.
PROMPTS = (
    " What is in this picture?\n\n",
    " What is the total?\n\n",
    " How many objects are in the image?\n\n",
    " Read the text in the image.\n\n",
    " Locate the yellow square in the given image.\n\n",
    " Describe the image.\n\nThe image shows a black triangle, a blue circle and a red box.",
    " Answer the question using a single word or phrase.\n\n",
    " ".join("这张图片里有什么？请读出图中的文字。请描述这张图片。总金额是多少？"),
)
PROMPT_REPEATS = 200


def read_source(path: Path) -> Iterator[str]:
    """Yield the texts of one source in the order of the file."""
    if path.suffix == ".txt":
        yield path.read_text(encoding="utf-8")
        return
    if path.suffix != ".parquet":
        raise SystemExit(f"{path}: a source must end in .txt or .parquet")
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    column = next((name for name in ("text", "lines") if name in file.schema_arrow.names), None)
    if column is None:
        raise SystemExit(f"{path}: no column named text or lines")
    for batch in file.iter_batches(batch_size=256, columns=[column]):
        for value in batch.column(0).to_pylist():
            yield value if column == "text" else "\n".join(line["text"] for line in value)


def box_lists(count: int = 4000) -> Iterator[str]:
    """Yield lists of boxes as the grounding format writes them, so that their brackets become tokens."""
    rng = random.Random(0)
    for _ in range(count):
        boxes = [sorted(rng.randrange(1000) for _ in range(4)) for _ in range(rng.randint(1, 4))]
        yield str(boxes)


def untrained_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(DIGITS), "isolated"),
            pre_tokenizers.Split(Regex(CJK), "isolated"),
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def special(content: str) -> AddedToken:
    return AddedToken(content, special=True, normalized=False)


def train(texts: Iterator[str]) -> Tokenizer:
    tokenizer = untrained_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(LAST_IDS),
        min_frequency=2,
        special_tokens=[special(content) for content in FIRST_IDS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=16,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([special(content) for content in LAST_IDS])
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise SystemExit(f"the texts gave {tokenizer.get_vocab_size()} tokens, not {VOCAB_SIZE}: give more text")
    return tokenizer


def parse_source(argument: str) -> tuple[Path, int]:
    path, _, times = argument.rpartition(":")
    return (Path(path), int(times)) if path and times.isdigit() else (Path(argument), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tokenizer of the built-in model.")
    parser.add_argument("sources", nargs="+", type=parse_source, metavar="TEXT[:TIMES]", help=".txt or .parquet files")
    parser.add_argument("--output", type=Path, required=True, help="the tokenizer.json to write")
    args = parser.parse_args()

    def texts() -> Iterator[str]:
        for path, times in args.sources:
            for _ in range(times):
                yield from read_source(path)
        yield from box_lists()
        yield from PROMPTS * PROMPT_REPEATS

    train(texts()).save(str(args.output), pretty=True)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
