"""Write a full-size checkpoint with random weights, file by file: for speed and memory, not for answers.

python benchmarks/random_checkpoint.py tiny /data/tiny-random      # 6.7 GB; small 32.3 GB, base 55.0 GB
python benchmarks/random_checkpoint.py base /data/base4 --weights int4   # 16.3 GB
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vl2.checkpoint.random_checkpoint import PLAIN, write_random_checkpoint
from vl2.config import OCR_PRESETS, PRESETS
from vl2.quant.quantize_model import SCHEME_NAMES

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=[*PRESETS, *OCR_PRESETS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", choices=[PLAIN, *SCHEME_NAMES], default=PLAIN)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_random_checkpoint(arguments.size, arguments.folder, weights=arguments.weights, seed=arguments.seed)
