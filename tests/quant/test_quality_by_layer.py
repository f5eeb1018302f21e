"""The benchmark of what quantizing costs layer by layer: it says what the whole model says, in every form."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.model.configs import small_model
from tests.reference import SIZES
from vl2.checkpoint.names import places
from vl2.model import VL2, Cache
from vl2.quant.quantize_model import SCHEME_NAMES, SCHEMES, quantize_model
from vl2.runtime.cpu_modules import with_kernels

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DTYPES = ((torch.float32,), (torch.bfloat16,), (torch.float32, torch.bfloat16))


@pytest.fixture
def by_layer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)  # where a script finds what lies beside it
    return importlib.import_module("quantization_by_layer")


@torch.inference_mode()
def read_whole(model: VL2, ids_WS: Tensor) -> Tensor:
    """Return the logits of a whole model that reads each window as a prompt, into a cache."""
    logits, language, S = [], with_kernels(model).language, ids_WS.shape[1]
    for ids_1S in ids_WS.split(1):
        cache = Cache.allocate(model.config.language_config, 1, S, dtype=model.dtype, device=model.device)
        logits.append(language.logits(language.extend(language.embed(ids_1S), cache))[0])
    return torch.cat(logits)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_layer_by_layer_gives_the_logits_of_the_whole_model(
    size: str, dtypes: tuple[torch.dtype, ...], by_layer: ModuleType
) -> None:
    plain = small_model(size).to(dtypes[-1])
    state = plain.state_dict()
    weights = {place.name: place.view(state[place.parameter]) for place in places(plain)}
    ids_WS = by_layer.drawn_windows(plain.config.language_config, count=2, length=40, seed=0)
    carried = by_layer.carry(plain.config, lambda name, shape: weights[name].view(shape), ids_WS, dtypes=dtypes)

    whole = {str(dtype).removeprefix("torch."): copy.deepcopy(plain).to(dtype) for dtype in dtypes}
    for name in SCHEME_NAMES:
        whole[name] = copy.deepcopy(plain)
        quantize_model(whole[name], SCHEMES[name])
    assert list(carried.logits_SV) == list(whole)
    for form, model in whole.items():
        # The same products in the same order: nothing to round otherwise.
        assert torch.equal(carried.logits_SV[form], read_whole(model, ids_WS)), form
        assert len(carried.state_errors[form]) == plain.config.language_config.num_hidden_layers

    as_plain, *rounded = by_layer.costs_of(carried)
    divergences = [cost.mean_divergence for cost in rounded]
    assert as_plain.mean_divergence == 0 < divergences[0]
    assert divergences == sorted(set(divergences)), "bfloat16, if it is beside float32, then 8 bits, then 4"
    none, *errors = carried.state_errors.values()
    assert not any(none)
    for by_form in zip(*errors, strict=True):
        assert by_form[0] > 0
        assert list(by_form) == sorted(set(by_form))


def test_the_script_prints_both_tables_and_draws_the_same_weights_again(
    by_layer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for layers in ("2", "2", "1"):
        few = ("--windows", "1", "--window", "24", "--layers", layers, "--out", str(tmp_path / "costs.json"))
        assert by_layer.main(["nano", *few]) == 0
        printed.append(capsys.readouterr())
    costs, depths = printed[0].out.split("\n\n")
    assert [line.split(" | ")[0] for line in costs.splitlines()[2:]] == ["| bfloat16", "| int8", "| int4"]
    assert depths.startswith("| error of the states after layer | 1 | 2 |")
    assert printed[0].out == printed[1].out
    assert "layer 2 of 2" in printed[0].err
    # The first layer is the same however many follow.
    first = [line.rsplit(" | ", 1)[0] for line in depths.splitlines()[2:]]
    assert [line.removesuffix(" |") for line in printed[2].out.splitlines()[-3:]] == first
    written = json.loads((tmp_path / "costs.json").read_text())
    assert [cost["form"] for cost in written["costs"]] == list(written["state_errors"])
