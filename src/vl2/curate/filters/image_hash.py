"""A perceptual hash: 256 bits that a picture keeps when it is scaled, recompressed or made brighter.

The signs, against their median, of the 16 x 16 lowest frequencies of a 64 x 64 grey thumbnail. The usual 64 bits
cannot tell two pages of text of one layout apart: their layout is all that the 8 x 8 lowest frequencies show.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

HASH_BITS = 256
FLAT = 0  # the hash of a picture of one colour, whichever
_KEPT = 16  # frequencies in each direction
_THUMBNAIL_PX = 64


@cache
def _cosines() -> npt.NDArray[np.float64]:
    """Return the first frequencies of the discrete cosine transform, one a row; the constant is left out below."""
    frequency, place = np.arange(_KEPT + 1)[:, None], np.arange(_THUMBNAIL_PX)[None, :]
    return np.asarray(np.cos(np.pi * frequency * (2 * place + 1) / (2 * _THUMBNAIL_PX)))


@cache
def _order() -> npt.NDArray[np.int64]:
    """Return the order of the bits in the hash: shuffled, by a generator whose stream NumPy keeps for ever.

    Pages of one layout agree in whole rows of frequencies. The index looks at neighbouring bits, and would compare
    each page with all others.
    """
    return np.random.RandomState(20241213).permutation(HASH_BITS)


def perceptual_hash(image: Image.Image) -> int:
    """Return the hash as a number of 256 bits. A picture of one colour hashes to `FLAT`."""
    thumbnail = image.convert("L").resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX)
    grey = np.asarray(thumbnail, dtype=np.float64)
    spectrum = _cosines() @ grey @ _cosines().T
    # Without the constant: brightness alone must not change the hash. Rounded, or the bits of a flat picture
    # would be the signs of rounding errors.
    lowest = np.round(spectrum.ravel()[1 : HASH_BITS + 1], 3)
    bits = (lowest > np.median(lowest))[_order()]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def distance(first: int, second: int) -> int:
    """Return the number of bits in which two hashes differ."""
    return (first ^ second).bit_count()
