"""DeepEncoder, the image encoder of DeepSeek-OCR. It maps views [I, 3, P, P] to features [I, (P / 64)^2, width].

SAM reads small patches, and this stays cheap because most of its blocks attend within windows. Its map has 16 times
fewer tokens than patches and is CLIP's input. A feature is CLIP's output followed by SAM's.

Source: arXiv 2510.18234, section 3.2; released `deepseek_ocr.py`. Golden: tests/golden/ocr.
"""

import torch
from torch import Tensor, nn

from vl2.deep_encoder_config import DeepEncoderConfig
from vl2.model.clip import ClipEncoder
from vl2.model.sam import SamEncoder


class DeepEncoder(nn.Module):
    """Encode views independently of one another. All views of a call must have the same size."""

    def __init__(self, config: DeepEncoderConfig) -> None:
        super().__init__()
        self.sam = SamEncoder(config.sam)
        self.clip = ClipEncoder(config.clip)

    def forward(self, views_I3PP: Tensor) -> Tensor:
        map_IDhw = self.sam(views_I3PP)
        seen = self.clip(map_IDhw)[:, 1:]
        return torch.cat((seen, map_IDhw.flatten(2).transpose(1, 2)), dim=-1)
