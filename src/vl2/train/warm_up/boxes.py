"""How the warm-up learns boxes: from the middle of each square of a tile, as distances to the four sides."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BOX_SCALE = 4.0  # distances are parts of the tile; so they come to about 1
BOX_WEIGHT = 2.0  # of this loss beside that of the classes


def square_centers(per_side: int) -> Tensor:
    """Return (x, y, x, y) of the middle of every square, row by row, as parts of the tile's side: [squares, 4]."""
    center = (torch.arange(per_side) + 0.5) / per_side
    y, x = torch.meshgrid(center, center, indexing="ij")
    return torch.stack((x, y, x, y), dim=-1).flatten(0, 1)


def box_loss(predicted_n4: Tensor, boxes_n4: Tensor, centers_n4: Tensor) -> Tensor:
    """Return the mean loss of boxes (x0, y0, x1, y1), which are parts of the tile's side."""
    return F.smooth_l1_loss(predicted_n4.float(), (boxes_n4 - centers_n4.float()) * BOX_SCALE, beta=0.1)
