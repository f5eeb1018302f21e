"""Load a full-size checkpoint and answer a 768 x 768 image: load time, first token, tokens per second, memory.

    python benchmarks/random_checkpoint.py tiny /data/tiny-random
    python benchmarks/full_size.py /data/tiny-random

The machine's own limits are measured in the same run, in the same process, and every speed is given as
a share of what they allow: reading the weights of a token once, or doing the arithmetic of a prompt at
the rate of one large matrix product. Run it on a quiet machine; figures of different runs do not compare.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from vl2.checkpoint.folder import stored_tensors
from vl2.checkpoint.model_size import ModelSize
from vl2.config import ModelConfig
from vl2.infer.image_tokens import embed_prompt, encode_images
from vl2.infer.prefill import prefill
from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import VLM, load
from vl2.model import Cache
from vl2.process.sample import Sample


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def best_time(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def read_rate() -> float:
    """Bytes per second that all threads together read from memory."""
    chunks = torch.ones(512 << 20, dtype=torch.int8).view(torch.int64).chunk(torch.get_num_threads())

    def read_all() -> None:
        threads = [threading.Thread(target=chunk.sum) for chunk in chunks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return (512 << 20) / best_time(read_all, 5)


def product_rate(dtype: torch.dtype) -> float:
    """Floating-point operations per second of one large matrix product."""
    a, b = torch.randn(2048, 4096).to(dtype), torch.randn(4096, 4096).to(dtype)
    return 2 * 2048 * 4096 * 4096 / best_time(lambda: a @ b.T, 5)


def encoder_work(config: ModelConfig) -> float:
    """Floating-point operations of the encoder for one tile."""
    vision = config.vision_config
    patches, width = vision.patches_per_side**2, vision.width
    matrices = 4 * width * width + 2 * width * vision.mlp_width
    return vision.layers * (2 * patches * matrices + 4 * patches * patches * width)


def make_image(side: int) -> Image.Image:
    return Image.radial_gradient("L").resize((side, side)).convert("RGB")


def measure(vlm: VLM, sample: Sample, new_tokens: int) -> dict[str, float]:
    """Time one whole answer, as a user waits for it, and then its stages with warm memory."""
    start = time.perf_counter()
    times = [time.perf_counter() - start for _ in vlm.sample_events(sample, GenerateOptions(max_new_tokens=new_tokens))]
    with torch.inference_mode():
        encoder_s = best_time(lambda: encode_images(vlm.runner, sample), 2)
        embeds = embed_prompt(vlm.runner, sample)

        def read_prompt() -> None:
            config, length = vlm.model.config.language_config, embeds.shape[1]
            cache = Cache.allocate(config, 1, length, dtype=vlm.model.dtype, device=vlm.model.device)
            prefill(vlm.runner, embeds, cache)

        prefill_s = best_time(read_prompt, 2)
    return {
        "first_token_s": times[0],
        "encoder_s": encoder_s,
        "prefill_s": prefill_s,
        "decode_tokens_per_s": (len(times) - 1) / (times[-1] - times[0]),
        "tokens": len(times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--side", type=int, default=768, help="of the square image, in pixels")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    file_bytes = sum(t.nbytes for t in stored_tensors(arguments.checkpoint).values())
    before = peak_bytes()
    start = time.perf_counter()
    vlm = load(arguments.checkpoint, device="cpu", dtype=arguments.dtype)
    load_s, load_peak = time.perf_counter() - start, peak_bytes()
    sample = vlm.processor.encode(
        [{"role": "user", "content": [{"type": "image", "image": make_image(arguments.side)},
                                      {"type": "text", "text": "Describe this image in detail."}]}]
    )  # fmt: skip
    if arguments.new_tokens < 2:
        parser.error("--new-tokens must be at least 2: a speed needs an interval")
    figures = measure(vlm, sample, arguments.new_tokens)
    answer_peak = peak_bytes()

    size = ModelSize.of(vlm.model.config)
    value_bytes = vlm.model.dtype.itemsize
    reads, products = read_rate(), product_rate(vlm.model.dtype)
    tiles, prompt = len(sample.tiles), len(sample.input_ids)
    ideal_decode = reads / (size.language_active * value_bytes)
    ideal_encoder_s = tiles * encoder_work(vlm.model.config) / products
    head = vlm.model.language.lm_head.weight.numel()
    ideal_prefill_s = 2 * prompt * (size.language_active - head) / products
    result = {
        "threads": torch.get_num_threads(),
        "checkpoint_gb": file_bytes / 1e9,
        "process_before_load_gb": before / 1e9,
        "load_s": load_s,
        "load_peak_gb": load_peak / 1e9,
        "load_peak_to_file": load_peak / file_bytes,
        "answer_peak_gb": answer_peak / 1e9,
        "answer_peak_to_file": answer_peak / file_bytes,
        "tiles": tiles,
        "prompt_tokens": prompt,
        **figures,
        "machine_read_gb_per_s": reads / 1e9,
        "machine_gflop_per_s": products / 1e9,
        "decode_share_of_limit": figures["decode_tokens_per_s"] / ideal_decode,
        "encoder_share_of_limit": ideal_encoder_s / figures["encoder_s"],
        "prefill_share_of_limit": ideal_prefill_s / figures["prefill_s"],
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:26} {value:.3g}" if isinstance(value, float) else f"{name:26} {value}")


if __name__ == "__main__":
    main()
