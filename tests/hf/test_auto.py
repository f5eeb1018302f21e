"""Registration with the Auto classes, and the configuration they return."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.ocr.golden import toy_folder, toy_vlm
from tests.ocr_family import UNKNOWN, write_folder
from tests.reference import CHECKPOINTS, SIZES
from vl2.config import ModelConfig, preset
from vl2.errors import UserError

pytest.importorskip("transformers")

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from tests.hf.golden import hf_model
from vl2.hf import VL2Config, VL2ForCausalLM, VL2Processor

pytestmark = pytest.mark.hf


@pytest.mark.parametrize("size", SIZES)
def test_auto_classes_return_ours(size: str) -> None:
    folder = CHECKPOINTS / size
    assert type(AutoConfig.from_pretrained(folder)) is VL2Config
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is VL2ForCausalLM
    assert type(AutoModelForImageTextToText.from_pretrained(folder)) is VL2ForCausalLM
    assert type(AutoProcessor.from_pretrained(folder)) is VL2Processor


def test_importing_registers_prints_nothing_and_vl2_alone_does_not_import_transformers() -> None:
    program = (
        "import sys, vl2, vl2.infer.vlm\n"
        "assert 'transformers' not in sys.modules\n"
        "import vl2.hf\n"
        "from transformers import AutoConfig\n"
        "assert type(AutoConfig.from_pretrained(sys.argv[1])).__module__ == 'vl2.hf.config'\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(CHECKPOINTS / "tiny")], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("size", [*SIZES, "released base"])
def test_a_config_writes_back_exactly_its_file(size: str, tmp_path: Path) -> None:
    if size == "released base":
        original = preset("base").to_dict()
        config = VL2Config(**original)
    else:
        original = json.loads((CHECKPOINTS / size / "config.json").read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(CHECKPOINTS / size)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == original
    assert config.to_model_config() == ModelConfig.from_dict(original)
    assert VL2Config.from_pretrained(tmp_path).to_dict() == original


def test_a_config_shows_what_transformers_asks_for_and_follows_changes() -> None:
    config = VL2Config.from_pretrained(CHECKPOINTS / "base")
    assert config.get_text_config(decoder=True) is config
    assert (config.vocab_size, config.num_hidden_layers, config.hidden_size) == (2048, 4, 72)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, None)
    config.language_config["aux_loss_alpha"] = 0.5
    config.dtype = torch.bfloat16
    assert config.to_model_config().language_config.aux_loss_alpha == 0.5
    assert config.to_dict()["torch_dtype"] == "bfloat16"


def test_a_config_that_the_model_does_not_support_is_refused() -> None:
    values = preset("tiny").to_dict()
    values["language_config"]["scoring_func"] = "tanh"
    with pytest.raises(UserError, match="scoring_func must be one of"):
        VL2Config(**values)
    with pytest.raises(UserError, match="no language_config"):
        VL2Config()


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype_and_device_are_honoured(dtype: str | torch.dtype) -> None:
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "base", dtype=dtype, device_map="cpu")
    assert (model.dtype, model.config.dtype, model.device.type) == (torch.bfloat16, torch.bfloat16, "cpu")
    assert not model.training
    biases = [buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")]
    assert biases
    assert all(bias.dtype == torch.float32 for bias in biases)
    assert hf_model("base").dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization_config": {"load_in_4bit": True}}, "does not take quantization_config"),
        ({"device_map": {"vision": 0, "language": 1}}, "device_map must be"),
        ({"dtype": "float13"}, "dtype must be"),
        ({"attn_implementation": "eager"}, "attn_implementation must be 'sdpa'"),
        ({"nonsense": 1}, "does not take nonsense"),
        ({"subfolder": "other"}, "does not take subfolder"),
    ],
)
def test_options_that_would_be_ignored_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VL2ForCausalLM.from_pretrained(CHECKPOINTS / "tiny", **options)


def test_options_that_ask_for_nothing_are_accepted() -> None:
    """The Auto classes of transformers 5.25 pass subfolder="" where nobody gave a folder."""
    options = {"subfolder": "", "quantization_config": None, "force_download": False}
    assert isinstance(VL2ForCausalLM.from_pretrained(CHECKPOINTS / "tiny", **options), VL2ForCausalLM)
    assert isinstance(VL2Processor.from_pretrained(CHECKPOINTS / "tiny", **options), VL2Processor)


def test_no_code_of_a_checkpoint_runs_even_where_it_is_trusted(tmp_path: Path) -> None:
    for file in (CHECKPOINTS / "tiny").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name, key, cls in (
        ("config.json", "AutoConfig", "Evil"),
        ("config.json", "AutoModelForCausalLM", "Evil"),
        ("processor_config.json", "AutoProcessor", "Evil"),
    ):
        values = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        values.setdefault("auto_map", {})[key] = f"evil.{cls}"
        (tmp_path / name).write_text(json.dumps(values), encoding="utf-8")
    (tmp_path / "evil.py").write_text("raise SystemExit('remote code ran')\n", encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert (type(model), type(processor)) == (VL2ForCausalLM, VL2Processor)


def test_a_new_model_has_weights_drawn_from_the_seed() -> None:
    config = VL2Config.from_pretrained(CHECKPOINTS / "tiny")

    def new_weight(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).network.language.lm_head.weight

    assert torch.equal(new_weight(1), new_weight(1))
    assert not torch.equal(new_weight(1), new_weight(2))
    assert new_weight(1).std().item() == pytest.approx(config.initializer_range, rel=0.05)


@pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}], ids=["", "trusted"])
def test_encoders_that_are_not_known_are_refused_and_vl2_still_opens(options: dict[str, bool], tmp_path: Path) -> None:
    """Their files have DeepSeek-VL2's model type and its processor's name, and transformers has no class for that."""
    folder = write_folder(tmp_path / "ocr", UNKNOWN)
    assert json.loads((folder / "processor_config.json").read_text())["processor_class"] == "DeepseekVLV2Processor"
    for auto in (AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor):
        with pytest.raises(UserError, match="this checkpoint is a model of the DeepSeek-OCR family: "):
            auto.from_pretrained(folder, **options)
    assert AutoTokenizer.from_pretrained(folder, **options).encode("a")  # which transformers has a class for
    assert type(AutoConfig.from_pretrained(CHECKPOINTS / "tiny")) is VL2Config
    assert type(AutoProcessor.from_pretrained(CHECKPOINTS / "tiny")) is VL2Processor


@pytest.mark.parametrize(("name", "kind"), [("deepseek-ocr", "DeepSeek-OCR"), ("deepseek-ocr-2", "DeepSeek-OCR-2")])
def test_deepseek_ocr_answers_beside_deepseek_vl2_as_without_transformers(name: str, kind: str) -> None:
    """Both kinds in one process, by the Auto classes: the right classes, and the answers of `vl2.load`."""
    image = Image.effect_noise((641, 1280), 60).convert("RGB")
    folder, vlm = toy_folder(name), toy_vlm("gundam", name)
    model, processor = AutoModelForCausalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert (type(model), type(processor)) == (VL2ForCausalLM, VL2Processor)
    assert (model.network.config.kind, processor.core.kind) == (kind, kind)
    inputs = processor("<image>\nFree OCR.", images=image)
    assert (len(inputs["tiles"]), len(inputs["overviews"])) == (2, 1)
    answer = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tuple(answer.tolist()) == vlm.chat("Free OCR.", [image], max_new_tokens=6).token_ids
    assert AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "tiny").network.config.kind == "DeepSeek-VL2"


def test_unlimited_ocr_generates_with_its_window_over_answers() -> None:
    """A window of 16 and answers of 50 tokens, for prompts of unequal length, beside the engine's."""
    folder, vlm = toy_folder("unlimited-ocr"), toy_vlm("tiny", "unlimited-ocr")
    model = AutoModelForCausalLM.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder, tiling="tiny")
    image = Image.effect_noise((90, 70), 60).convert("RGB")
    prompts = ["Free OCR.", "Parse the figure, and say what it shows."]
    inputs = processor([f"<image>\n{prompt}" for prompt in prompts], images=[image, image])
    options = {"max_new_tokens": 50, "do_sample": False, "suppress_tokens": [processor.eos_token_id]}
    width = inputs["input_ids"].shape[1]
    answers = model.generate(**inputs, **options)[:, width:].tolist()
    unguarded = {"no_repeat_ngram_size": 0, "logit_bias": {processor.eos_token_id: -100}}
    expected = [list(vlm.chat(p, [image], max_new_tokens=50, **unguarded).token_ids) for p in prompts]
    assert answers == expected
    # Beams reorder the rows of the cache: two beams that are forced to the same tokens are one.
    forced = model.generate(**inputs, **options, num_beams=2, prefix_allowed_tokens_fn=_told(expected, width))
    assert forced[:, width:].tolist() == expected
    with pytest.raises(UserError, match="use_cache must be True"):
        model.generate(processor("Hi")["input_ids"], max_new_tokens=2, use_cache=False)


def test_unlimited_ocr_is_saved_with_its_model_type(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy_folder("unlimited-ocr"))
    model.save_pretrained(tmp_path / "hf")
    toy_vlm("tiny", "unlimited-ocr").save(tmp_path / "vl2")
    for folder in (tmp_path / "hf", tmp_path / "vl2"):
        assert json.loads((folder / "config.json").read_text())["model_type"] == "unlimited-ocr"
        config = AutoConfig.from_pretrained(folder)
        assert (type(config), config.to_model_config()) == (type(model.config), model.config.to_model_config())
    older = json.loads((tmp_path / "vl2" / "config.json").read_text()) | {"model_type": "deepseek_vl_v2"}
    assert VL2Config(**older).to_model_config().kind == "Unlimited-OCR"


def _told(answers: list[list[int]], width: int) -> Callable[[int, torch.Tensor], list[int]]:
    return lambda row, ids: [answers[row][len(ids) - width]]


@pytest.mark.parametrize(
    ("name", "model_type"), [("deepseek-ocr", "unlimited_ocr"), ("deepseek-ocr-2", "deepseek_ocr2")]
)
def test_what_is_saved_opens_in_the_classes_of_transformers(name: str, model_type: str, tmp_path: Path) -> None:
    """Both ways of saving, read by transformers' own renaming of the released names; the logits are ours."""
    pytest.importorskip(f"transformers.models.{model_type}", reason=f"this transformers has no {model_type}")
    from vl2.hf.peer_classes import open_in_transformers

    vlm = toy_vlm("base", name)
    vlm.save(tmp_path / "vl2")
    AutoModelForCausalLM.from_pretrained(toy_folder(name)).save_pretrained(tmp_path / "hf")
    ids = torch.tensor([[0, 5, 77, 300, 12]])
    with torch.inference_mode():
        ours = VL2ForCausalLM.from_pretrained(toy_folder(name))(ids).logits
        for folder in (tmp_path / "vl2", tmp_path / "hf"):
            theirs = open_in_transformers(vlm.model.config, folder, 4088)(input_ids=ids).logits
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4 * float(ours.abs().max()))


@pytest.mark.parametrize("model_type", ["deepseek_ocr2", "unlimited_ocr"])
def test_a_checkpoint_converted_for_transformers_gets_its_own_classes(model_type: str, tmp_path: Path) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config).__module__.startswith(f"transformers.models.{model_type}.")
    assert AutoModelForImageTextToText._model_mapping[type(config)].__module__.startswith("transformers.")
