"""`vl2 assemble`: a checkpoint to start training from, made of a language model and a SigLIP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vl2.cli.flags import OptionalText, OutputFlags, print_json, silence_hub
from vl2.progress import bytes_bar

if TYPE_CHECKING:
    from vl2.assemble import Assembled
    from vl2.config import Json


@dataclass(frozen=True, kw_only=True)
class Assemble:
    """Make a checkpoint to start training from: a language model, a SigLIP and a fresh projector.

    The new folder has the released layout; an alignment recipe names it as its model. It needs little memory, whatever
    the size. Every tensor of both models is taken, or listed as left out.

    Examples:
      vl2 assemble assembled --language deepseek-ai/DeepSeek-V2-Lite --vision google/siglip-so400m-patch14-384
      vl2 assemble assembled --language random:tiny --vision timm/vit_so400m_patch14_siglip_384.webli
      vl2 assemble assembled --language random:nano --vision random:nano --dtype float32
    """

    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """the folder to write; it must be new"""
    language: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """folder or hub id in DeepSeek-V2's layout or DeepSeek-MoE's; or random:SIZE, with nano, tiny, small or base"""
    vision: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """folder or hub id of a SigLIP, as transformers or timm names its tensors; or random:SIZE"""
    tokenizer: OptionalText = None
    """for a random language model: a tokenizer.json or its folder; the built-in one by default"""
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """of the weights"""
    seed: int = 0
    """of the projector and of random weights"""
    offline: bool = False
    """use only what is already downloaded"""
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        if self.output.quiet:
            silence_hub()
        from vl2.assemble import assemble_checkpoint

        with bytes_bar(self.output.quiet, "assembling") as progress:
            made = assemble_checkpoint(
                self.language,
                self.vision,
                self.out,
                tokenizer=self.tokenizer,
                dtype=self.dtype,
                seed=self.seed,
                offline=self.offline,
                progress=progress,
            )
        if self.output.json:
            print_json(self._values(made))
        else:
            print(self._text(made))

    def _values(self, made: Assembled) -> Json:
        return {
            "folder": str(made.folder),
            "dtype": self.dtype,
            "bytes": made.num_bytes,
            "parameters": made.parameters,
            "tile_px": made.config.siglip.image_size,
            "context": made.config.language_config.max_position_embeddings,
            "vocabulary": {
                "rows_before": made.vocabulary.stored_rows,
                "rows": made.vocabulary.rows,
                "added": made.vocabulary.added,
            },
            "left_out": made.left_out,
        }

    def _text(self, made: Assembled) -> str:
        vision, language = made.config.siglip, made.config.language_config
        sources = {"language": self.language, "vision": self.vision, "projector": f"fresh, seed {self.seed}"}
        sizes = {
            "language": f"{language.num_hidden_layers} layers, context {language.max_position_embeddings:,}",
            "vision": f"{vision.layers} blocks, tiles of {vision.image_size} px, {vision.patches_per_side**2} patches",
            "projector": f"{made.config.projector_config.input_dim} to {made.config.projector_config.n_embed}",
        }
        lines = [f"{made.folder}: {made.num_bytes / 1e9:.2f} GB in {self.dtype}"]
        lines += [
            f"{part:11}{made.parameters[part]:>15,} parameters: {sizes[part]}; {source}"
            for part, source in sources.items()
        ]
        lines.append(f"vocabulary {_vocabulary(made)}")
        if made.left_out:
            lines.append("left out   " + ", ".join(f"{kind} ({count})" for kind, count in made.left_out.items()))
        return "\n".join(lines)


def _vocabulary(made: Assembled) -> str:
    words = made.vocabulary
    grown = f"{words.rows:,} rows" + (f", {words.stored_rows:,} before" if words.rows != words.stored_rows else "")
    if not words.added:
        return f"{grown}; the tokenizer has all special tokens"
    ids = sorted(words.added.values())
    return f"{grown}; {len(ids)} tokens added ({ids[0]} to {ids[-1]}), which begin with the mean of the others' rows"
