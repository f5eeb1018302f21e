"""`vl2 assemble`: what it prints, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vl2.checkpoint.load import load_model

RANDOM = ("--language", "random:nano", "--vision", "random:nano")


def test_it_says_what_became_of_the_parts(vl2, tmp_path: Path) -> None:
    ran = vl2("assemble", tmp_path / "out", *RANDOM, "--seed", "3")
    assert (ran.code, ran.err) == (0, "")
    first, language, vision, projector, vocabulary = ran.out.splitlines()
    assert first == f"{tmp_path / 'out'}: 0.04 GB in bfloat16"
    assert language.startswith("language ")
    assert language.endswith("parameters: 8 layers, context 4,096; random:nano")
    assert vision.endswith("parameters: 6 blocks, tiles of 168 px, 144 patches; random:nano")
    assert projector.endswith("parameters: 192 to 256; fresh, seed 3")
    assert vocabulary == "vocabulary 4,096 rows; the tokenizer has all special tokens"


def test_its_json_counts_what_the_model_has(vl2, tmp_path: Path) -> None:
    ran = vl2("assemble", tmp_path / "out", *RANDOM, "--dtype", "float32", "--json", "--quiet")
    values = json.loads(ran.out)
    model = load_model(tmp_path / "out")
    counts = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in ("vision", "projector")}
    assert {part: values["parameters"][part] for part in counts} == counts
    assert values["vocabulary"] == {"rows_before": 4096, "rows": 4096, "added": {}}
    assert (values["tile_px"], values["context"], values["left_out"]) == (168, 4096, {})


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("OUT", "--language", "random:nano"), 2, "--vision NAME is missing"),
        (("OUT", *RANDOM, "--dtype", "int8"), 2, "invalid choice 'int8'"),
        (("OUT", "--language", "llama", "--vision", "random:nano"), 1, "no folder llama"),
        (("OUT", "--language", "random:nano", "--vision", "random:large"), 1, "got 'random:large'"),
        (("OUT", *RANDOM, "--tokenizer", "no-such-file"), 1, "no tokenizer file at no-such-file"),
        ((Path(__file__).parent, *RANDOM), 1, "exists: choose a new folder to save to"),
    ],
)
def test_bad_input_is_one_line(vl2, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    ran = vl2("assemble", *(tmp_path / "out" if word == "OUT" else word for word in arguments))
    assert ran.code == code
    assert ran.err.count("\n") == 1
    assert message in ran.err
    assert not (tmp_path / "out").exists()


def test_a_hub_id_is_refused_by_its_settings_before_its_weights_are_downloaded(
    vl2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    asked = []

    def download(repo_id: str, *, allow_patterns: list[str], **_: object) -> str:
        asked.append((repo_id, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    ran = vl2("assemble", tmp_path / "out", "--language", "org/llama", "--vision", "random:nano")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "model_type must be 'deepseek_v2' or 'deepseek', got 'llama'" in ran.err
    assert asked == [("org/llama", ["*.json"])]
