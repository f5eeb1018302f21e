# mypy: allow-untyped-calls
"""The model class for transformers: Auto classes, generate, Trainer, PEFT.

`VL2ForCausalLM` holds the modules of `vl2.model.VL2` under the same names, and VL2 does the arithmetic. So state
dicts, LoRA targets and adapter files are those of VL2. They differ from the released model's in one misspelled name
and in the stacked experts.

`vl2.checkpoint` reads and writes the weights, not transformers. It is the code that `vl2.load` runs: it is strict (a
missing or surplus tensor is an error, in transformers a warning), copies each released tensor directly into the
stacked experts, and writes the released layout. The price is that a model has one device and cannot be quantized on
loading.

Golden: generate, left_padded_batch and loss_on_text_labels in tests/golden/reference/model.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from vl2.batch import Batch
from vl2.checkpoint import LoadOptions, load_model, locate_checkpoint, save_model
from vl2.checkpoint.memory_plan import TILES_PER_PASS
from vl2.errors import UserError
from vl2.hf.cache import VL2Cache
from vl2.hf.collator import ImageInputs, checked_mask
from vl2.hf.config import UnlimitedOCRConfig, VL2Config
from vl2.hf.pretrained_files import device_of, dtype_of, refuse_unknown, shard_bytes, write_checkpoint
from vl2.model import VL2, init_weights
from vl2.model.empty import shapes_only
from vl2.process.sample import IGNORE_ID

# Transformers renamed the cache between 5.12 and 5.24. Older versions know only the old name.
_OUTPUT_FIELDS = {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}
CACHE_NAME = "cache" if "cache" in _OUTPUT_FIELDS else "past_key_values"
GENERATION_FILE = "generation_config.json"


@dataclass
class VL2Output(CausalLMOutputWithPast):
    """The output of `VL2ForCausalLM.forward`."""

    balance_loss: Tensor | None = None  # None with a cache; unweighted, and not included in `loss`


class VL2ForCausalLM(PreTrainedModel, GenerationMixin):
    """DeepSeek-VL2 of any size, DeepSeek-OCR and Unlimited-OCR."""

    config: VL2Config
    config_class = VL2Config
    main_input_name = "input_ids"
    accepts_loss_kwargs = True  # Trainer passes num_items_in_batch, so the loss is a mean over all tokens of a step
    _supports_sdpa = True

    def __init__(self, config: VL2Config, network: VL2 | None = None) -> None:
        """Use the modules of `network`, or build a network with random weights, seeded by `torch.initial_seed`."""
        super().__init__(config)
        if config._attn_implementation not in (None, "sdpa"):
            raise UserError(f"attn_implementation must be 'sdpa', got {config._attn_implementation!r}")
        if network is None:
            network = VL2(config.to_model_config())
            if network.device.type != "meta":
                init_weights(network, torch.initial_seed())
        # This object and the network share their module and parameter tables. So a module that PEFT replaces, or
        # parameters that move to a device, change in both. The network is not registered as a submodule, because
        # that would add a prefix to the parameter names.
        self._modules, self._parameters = network._modules, network._parameters
        object.__setattr__(self, "network", network)
        self.network: VL2
        self.generation_config = _generation_defaults(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: `vl2.model.init_weights` has filled the whole model."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: VL2Config | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        generation_config: GenerationConfig | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        attn_implementation: str | None = None,
        adapter_kwargs: dict[str, Any] | None = None,
        **others: Any,
    ) -> VL2ForCausalLM:
        """Load a checkpoint folder in the released layout, or a hub id, in evaluation mode.

        With `dtype` None or "auto" the weights keep the checkpoint's dtype. `device_map` names one device.
        """
        refuse_unknown("from_pretrained", others)
        if adapter_kwargs and "_adapter_model_path" in adapter_kwargs:
            # Transformers would only warn about names that do not match, and leave random weights in their place.
            raise UserError("this folder holds an adapter: load it with peft.AutoPeftModelForCausalLM.from_pretrained")
        folder = locate_checkpoint(pretrained_model_name_or_path, revision=revision, offline=local_files_only)
        # Some versions of transformers' Auto classes pass the requested dtype only in the config.
        wanted = dtype_of(dtype or torch_dtype) or dtype_of(None if config is None else config.dtype)
        network = load_model(folder, LoadOptions(dtype=wanted, device=device_of(device_map)))
        if config is None:
            config = VL2Config.from_pretrained(folder)
        elif config.to_model_config() != network.config:
            raise UserError(f"the given config describes another model than {folder / 'config.json'}")
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        config.name_or_path = str(pretrained_model_name_or_path)
        config.dtype = network.dtype
        model = cls(config, network)
        if generation_config is not None:
            model.generation_config = generation_config
        elif (folder / GENERATION_FILE).is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        model.eval()
        return model

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        max_shard_size: int | str = "5GB",
        **others: Any,
    ) -> None:
        """Write config, weights and generation config in the released layout, and replace an earlier save.

        A model with an adapter from `add_adapter` saves the adapter only, as all models in transformers do.
        """
        if getattr(self, "_hf_peft_config_loaded", False):
            others["max_shard_size"] = max_shard_size
            super().save_pretrained(save_directory, is_main_process, state_dict, **others)
            return
        refuse_unknown("save_pretrained", others)
        if not is_main_process:
            return
        network = self._plain_network(self.state_dict() if state_dict is None else state_dict)
        write_checkpoint(
            Path(save_directory),
            lambda folder: save_model(network, folder, max_shard_bytes=shard_bytes(max_shard_size)),
        )
        self.generation_config.save_pretrained(save_directory)

    def _plain_network(self, state: dict[str, Tensor]) -> VL2:
        """Return a VL2 that uses these tensors. Raise UserError if they are not exactly its parameters."""
        with shapes_only():
            network = VL2(self.config.to_model_config())
        try:
            network.load_state_dict(state, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"only whole models are saved: merge adapters, or save them with PEFT ({reason})") from None
        return network

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        tiles: Tensor | None = None,
        grids: Tensor | None = None,
        image_mask: Tensor | None = None,
        overviews: Tensor | None = None,
        cache: VL2Cache | None = None,
        past_key_values: VL2Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        cache_position: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> VL2Output | tuple[Any, ...]:
        """Return logits, and with `labels` the mean next-token cross entropy over labels other than -100.

        input_ids, attention_mask, image_mask and labels are [B, S]; `tiles` [I, 3, P, P] and `grids` [images, 2]
        hold the images of all rows, row by row, and so does `overviews` [J, 3, B, B] if the model has them. Positions
        are computed from the mask, so there are no position_ids (`cache_position`, which old versions of transformers
        pass, is ignored). With `cache` or `use_cache` the S columns are appended to the cache, attention_mask covers
        the cached and the new columns, and no gradient is computed.
        """
        if output_attentions or output_hidden_states:
            raise UserError("output_attentions and output_hidden_states are not supported")
        if labels is not None and self.network.config.answer_window is not None:
            raise UserError("this class trains no model with a window over answers (Unlimited-OCR): use `vl2 finetune`")
        cache = cache if cache is not None else past_key_values
        images = ImageInputs.of(image_mask, tiles, grids, overviews, self.network.config)
        balance_loss = None
        if cache is not None or use_cache:
            if labels is not None and torch.is_grad_enabled() and self.training:
                raise UserError("training does not use a cache: use_cache must be False")
            if inputs_embeds is None:
                inputs_embeds = self._embed(_required(input_ids), images)
            cache, states_BSD = self._append(inputs_embeds, attention_mask, cache)
            logits_BSV = self.network.language.logits(_last(states_BSD, logits_to_keep))
        else:
            if inputs_embeds is not None:
                raise UserError("without a cache inputs_embeds are not supported: give input_ids")
            output = self.network(self._batch(_required(input_ids), attention_mask, images))
            logits_BSV, balance_loss = _last(output.logits, logits_to_keep), output.balance_loss
        loss = None if labels is None else self._loss(logits_BSV, labels, num_items_in_batch)
        named: dict[str, Any] = {CACHE_NAME: cache}
        result = VL2Output(loss=loss, logits=logits_BSV, balance_loss=balance_loss, **named)
        return result if return_dict is not False else result.to_tuple()

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *others: Any,
        image_mask: Tensor | None = None,
        tiles: Tensor | None = None,
        grids: Tensor | None = None,
        overviews: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Generate like any model of transformers. Prompts of unequal length must be padded on the left.

        Images are encoded here, before transformers repeats the rows for beams or several answers, because it
        cannot repeat `tiles`, which holds the tiles of all rows in one stack.
        """
        if options.get("trust_remote_code") or isinstance(options.get("custom_generate"), str):
            raise UserError("generate runs no remote code: omit trust_remote_code; custom_generate must be a function")
        mask = options.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise UserError("generate continues the last column: pad on the left, not on the right")
        default = (generation_config or self.generation_config).use_cache
        uses_cache = options.get("use_cache", default) is not False
        if not uses_cache and self.network.config.answer_window is not None:
            raise UserError("Unlimited-OCR's window over its answers is in the cache: use_cache must be True")
        images = ImageInputs.of(image_mask, tiles, grids, overviews, self.network.config)
        if images is not None:
            if not uses_cache:
                raise UserError("generate with images needs the cache: use_cache must be True")
            input_ids = _required(inputs if inputs is not None else options.get("input_ids"))
            with torch.no_grad():
                options |= {"input_ids": input_ids, "inputs_embeds": self._embed(input_ids, images)}
            inputs = None
        if uses_cache and options.get("cache") is None and options.get("past_key_values") is None:
            options[CACHE_NAME] = VL2Cache.of(self.network.config)
        return super().generate(inputs, generation_config, *others, **options)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.network.language.model.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        return self.network.language.lm_head

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *_: Any, **__: Any) -> nn.Embedding:
        """Return the embedding unchanged if it has at least `new_num_tokens` rows, otherwise raise UserError.

        PEFT calls this with the tokenizer's size, which may be smaller than the released vocabulary.
        """
        if new_num_tokens is not None and new_num_tokens > self.config.vocab_size:
            raise UserError(f"the vocabulary has {self.config.vocab_size} ids, {new_num_tokens} were asked for")
        return self.get_input_embeddings()

    def _embed(self, input_ids: Tensor, images: ImageInputs | None) -> Tensor:
        """Return the embeddings [B, S, D] of the prompts, with the visual tokens in their positions."""
        input_ids = input_ids.to(self.device)
        if images is None:
            return self.network.language.embed(input_ids)
        grids = [(columns, rows) for columns, rows in images.grids.tolist()]
        overviews = None if images.overviews is None else self._encode(images.overviews)
        tokens_IQD = self._encode(images.tiles) if overviews is None or len(images.tiles) else overviews[:0]
        visual_TD = self.network.arrange(tokens_IQD, grids, overviews)
        return self.network.embed(input_ids, images.mask.to(self.device), visual_TD)

    def _encode(self, tiles: Tensor) -> Tensor:
        parts = tiles.to(self.device).split(TILES_PER_PASS)
        return torch.cat([self.network.encode_tiles(part) for part in parts])

    @torch.no_grad()
    def _append(
        self, embeds_BSD: Tensor, attention_mask: Tensor | None, cache: VL2Cache | None
    ) -> tuple[VL2Cache, Tensor]:
        """Append S columns to the cache, or to a new one. Return it with the columns' hidden states [B, S, D]."""
        if cache is None:
            cache = VL2Cache.of(self.network.config)
        if not isinstance(cache, VL2Cache):
            raise UserError(f"the cache must be a VL2Cache, got a {type(cache).__name__}")
        num_new = embeds_BSD.shape[1]
        if attention_mask is None:
            attention_mask = torch.ones(embeds_BSD.shape[:2], device=embeds_BSD.device)
        if attention_mask.shape[1] < num_new:
            raise UserError(f"attention_mask must cover the {num_new} new columns, got {attention_mask.shape[1]}")
        return cache, cache.extend(self.network.language, embeds_BSD, attention_mask[:, -num_new:].bool())

    def _batch(self, input_ids: Tensor, attention_mask: Tensor | None, images: ImageInputs | None) -> Batch:
        device = input_ids.device
        if images is None:
            images = ImageInputs(
                mask=torch.zeros_like(input_ids, dtype=torch.bool),
                tiles=torch.zeros(0, 3, 1, 1, device=device),
                grids=torch.zeros(0, 2, dtype=torch.int64),
                overviews=None,
            )
        return Batch(
            input_ids=input_ids,
            labels=torch.full_like(input_ids, IGNORE_ID),
            attention_mask=checked_mask(attention_mask, input_ids),
            image_mask=images.mask,
            tiles=images.tiles,
            grids=images.grids,
            overviews=images.overviews,
        )

    def _loss(self, logits_BSV: Tensor, labels_BS: Tensor, num_items: Tensor | int | None) -> Tensor:
        if logits_BSV.shape[:2] != labels_BS.shape:
            raise UserError("labels need the logits of all positions: logits_to_keep must be 0")
        loss: Tensor = self.loss_function(
            logits=logits_BSV, labels=labels_BS, vocab_size=logits_BSV.shape[-1], num_items_in_batch=num_items
        )
        return loss


class UnlimitedOCRForCausalLM(VL2ForCausalLM):
    """The same for the model type of Unlimited-OCR: transformers wants a model class for each."""

    config: UnlimitedOCRConfig
    config_class = UnlimitedOCRConfig


def _generation_defaults(config: VL2Config) -> GenerationConfig:
    # The tokenizer's pad id is not known here. Padding after a finished answer is not read, so any id will do.
    return GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.eos_token_id
    )


def _required(input_ids: Tensor | None) -> Tensor:
    if input_ids is None:
        raise UserError("input_ids are needed")
    return input_ids


def _last(x_BS: Tensor, kept: int | Tensor) -> Tensor:
    """Return the last `kept` positions (all if it is 0), or the positions of an index tensor."""
    return x_BS[:, kept] if isinstance(kept, Tensor) else x_BS[:, -kept:]
