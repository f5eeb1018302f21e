"""Several adapters on one model: each answers as if it were alone, and the base as if there were none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.lora.adapted import EVERYTHING, adapted_model, base_model, batch_of, disturb, logits
from tests.reference import CHECKPOINTS
from vl2.errors import UserError
from vl2.lora.attach import add_lora
from vl2.lora.peft_files import load_adapter, save_adapter
from vl2.lora.spec import LoRASpec
from vl2.lora.switch import AdapterSwitch


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of different places and ranks, for a size with latent attention."""
    folder = tmp_path_factory.mktemp("adapters")
    save_adapter(adapted_model("base", EVERYTHING), folder / "all", str(CHECKPOINTS / "base"))
    other = base_model("base")
    add_lora(other, LoRASpec(rank=2, alpha=2.0, targets=("attention",)), seed=5)
    disturb(other, seed=6)
    save_adapter(other, folder / "attention", str(CHECKPOINTS / "base"))
    return {"all": folder / "all", "attention": folder / "attention"}


def test_every_adapter_answers_as_if_it_were_alone_and_the_base_as_if_there_were_none(
    folders: dict[str, Path],
) -> None:
    batch, model = batch_of("base"), base_model("base")
    plain = logits(model, batch)
    switch = AdapterSwitch(model, folders)
    assert torch.equal(logits(model, batch), plain)
    for name in ("all", "attention", "all"):
        switch.use(name)
        alone = base_model("base")
        load_adapter(alone, folders[name])
        # Equal up to rounding: the matrix that is absorbed is merged here.
        torch.testing.assert_close(logits(model, batch), logits(alone, batch), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(logits(model, batch), plain, atol=1e-3)
    switch.use(None)
    assert torch.equal(logits(model, batch), plain)


def test_latent_attention_is_absorbed_with_an_adapter_too(folders: dict[str, Path]) -> None:
    model = base_model("base")
    switch = AdapterSwitch(model, folders)
    switch.use("attention")
    attention = model.language.model.layers[0].self_attn
    assert type(attention.kv_b_proj) is torch.nn.Linear


def test_an_adapter_that_does_not_fit_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter odd: no adapter_config\.json"):
        AdapterSwitch(base_model("base"), {"fine": folders["all"], "odd": tmp_path})
