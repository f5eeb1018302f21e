"""The projector between the image encoder and the language model.

DeepSeek-VL2's is a 2 x 2 pixel shuffle, then a two-layer MLP into the language model's width. DeepSeek-OCR's is one
linear layer. If the ratio does not divide the side (27 patches), zeros are added on the right and at the bottom.

Source: released MlpProjector "downsample_mlp_gelu" and "linear". Goldens: projector_out in
tests/golden/reference/model; tests/golden/ocr.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from vl2.config import ProjectorConfig


def pixel_shuffle(x_IhwC: Tensor, ratio: int) -> Tensor:
    """Join each ratio x ratio square of patches into one token of C * ratio^2 channels, channel-major: (C, y, x)."""
    _, height, width, _ = x_IhwC.shape
    x_IhwC = F.pad(x_IhwC, (0, 0, 0, -width % ratio, 0, -height % ratio))
    squares = x_IhwC.unflatten(2, (-1, ratio)).unflatten(1, (-1, ratio))  # [I, h/r, r, w/r, r, C]
    shuffled: Tensor = squares.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)
    return shuffled


class Projector(nn.Module):
    """Map patch features [I, patches, width] to visual tokens [I, Q, D]."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.ratio = config.downsample_ratio
        # Indices 0 and 2 are the names in released files; the activation between has no weights.
        self.layers = nn.Sequential(
            nn.Linear(config.input_dim * self.ratio**2, config.n_embed),
            nn.GELU(),
            nn.Linear(config.n_embed, config.n_embed),
        )

    def forward(self, patches_IpC: Tensor) -> Tensor:
        side = round(patches_IpC.shape[1] ** 0.5)
        out: Tensor = self.layers(pixel_shuffle(patches_IpC.unflatten(1, (side, side)), self.ratio))
        return out


class LinearProjector(nn.Module):
    """Map each feature of [I, Q, width] to one visual token of [I, Q, D]."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.layers = nn.Linear(config.input_dim, config.n_embed)

    def forward(self, features_IQC: Tensor) -> Tensor:
        out: Tensor = self.layers(features_IQC)
        return out
