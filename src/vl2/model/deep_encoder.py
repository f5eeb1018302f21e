"""DeepEncoder, the image encoder of the DeepSeek-OCR family. Views [I, 3, P, P] become features [I, (P / 64)^2, width].

SAM reads small patches, and this stays cheap because most of its blocks attend within windows. Its map has 16 times
fewer tokens than patches and is the input of the second half. In DeepSeek-OCR and Unlimited-OCR that is CLIP, and a
feature is CLIP's output followed by SAM's. In DeepSeek-OCR-2 it is a decoder with queries, whose output is the feature.

Source: arXiv 2510.18234, section 3.2, and 2601.20552; released `deepseek_ocr.py` and `deepseek_ocr2.py`. Golden:
tests/golden/ocr.
"""

import torch
from torch import Tensor, nn

from vl2.deep_encoder_config import ClipConfig, DeepEncoderConfig, QueryEncoderConfig, SamConfig
from vl2.model.clip import ClipEncoder
from vl2.model.query_encoder import QueryEncoder
from vl2.model.sam import SamEncoder


class DeepEncoder(nn.Module):
    """SAM and CLIP. Views are encoded independently of one another. All views of a call must have the same size."""

    def __init__(self, sam: SamConfig, clip: ClipConfig) -> None:
        super().__init__()
        self.sam = SamEncoder(sam)
        self.clip = ClipEncoder(clip)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks in the order in which they run."""
        return [*self.sam.blocks, *self.clip.transformer.layers]

    def forward(self, views_I3PP: Tensor) -> Tensor:
        map_IDhw = self.sam(views_I3PP)
        seen = self.clip(map_IDhw)[:, 1:]
        return torch.cat((seen, map_IDhw.flatten(2).transpose(1, 2)), dim=-1)


class DeepEncoder2(nn.Module):
    """SAM and a decoder with queries. It encodes views of 768 and of 1,024 px."""

    def __init__(self, sam: SamConfig, queries: QueryEncoderConfig) -> None:
        super().__init__()
        self.sam = SamEncoder(sam)
        self.query_encoder = QueryEncoder(queries, pixels_per_token=4 * sam.patch_size)

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks in the order in which they run."""
        return [*self.sam.blocks, *self.query_encoder.layers]

    def forward(self, views_I3PP: Tensor) -> Tensor:
        out: Tensor = self.query_encoder(self.sam(views_I3PP))
        return out


def build_deep_encoder(config: DeepEncoderConfig) -> DeepEncoder | DeepEncoder2:
    """Return the encoder that the configuration's second half decides."""
    if isinstance(config.second, QueryEncoderConfig):
        return DeepEncoder2(config.sam, config.second)
    return DeepEncoder(config.sam, config.second)
