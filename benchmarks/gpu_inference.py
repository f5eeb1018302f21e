"""The parts of `gpu.sh` that measure answers: the Triton kernels, a decoding step, and the server's engine."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import closing
from functools import partial

import torch
from gpu_settings import Row, Settings, now, random_model
from torch import Tensor
from torch.nn import functional as F

from vl2.config import preset
from vl2.infer.engine.request import Job
from vl2.infer.engine.scheduler import EngineLimits, Scheduler
from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import load
from vl2.quant.formats import KINDS, Kind, Quantized, dequantize, quantize
from vl2.quant.quantize_model import SCHEMES, quantize_model
from vl2.runtime import PlainRunner, Runner, choose_runner, gpu_kernels

LARGEST_ERROR = 2**-7  # relative to the largest product: one rounding to bfloat16
ROWS = (1, 16, 64)


def products(settings: Settings) -> list[Row]:
    """Compare products with packed weights with those of the dequantized ones, and time both.

    GB/s are bytes of the weight as it is held, over the time. Without the kernels, only plain PyTorch is measured.
    """
    config = preset(settings.size).language_config
    D, hidden, E = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts or 1
    weight = random_weight(settings, D, D)
    inputs = [random_weight(settings, count, D) for count in ROWS]
    dtype = str(settings.dtype).removeprefix("torch.")
    rows = [
        timed(f"{dtype}, {D} x {D}, {len(x)} rows", settings, weight.nbytes, partial(F.linear, x, weight))
        for x in inputs
    ]
    if gpu_kernels.refusal(settings.device) is not None:
        return rows
    for kind in KINDS:
        layer = quantize(weight, kind)
        stack = quantize(random_weight(settings, E, 2 * hidden, D), kind)
        exact = dequantize(layer, D, D, torch.float32)
        for x in inputs:
            rows += kernel_rows(settings, kind, layer, stack, x, F.linear(x.float(), exact))
    return rows


def kernel_rows(
    settings: Settings, kind: Kind, layer: Quantized, stack: Quantized, x: Tensor, expected: Tensor
) -> list[Row]:
    """Check and time the kernel with one weight, then with all experts and as many rows spread over them."""
    from vl2.runtime.gpu_kernels.grouped_matmul import Weights, multiply

    D = x.shape[1]
    one, name = Weights.of_layer(layer, D), f"{kind}, {D} x {D}, {len(x)} rows"
    error = float((multiply(x, one) - expected).abs().max() / expected.abs().max())
    if error > LARGEST_ERROR:
        raise SystemExit(f"{name}: the kernel's products are wrong, by {error:.3g} of the largest")
    E = len(stack.codes)
    experts = Weights(kind, stack.codes, stack.scales, 2 * preset(settings.size).language_config.moe_intermediate_size)
    counts = torch.bincount(torch.arange(len(x), device=x.device) % E, minlength=E)
    read = (stack.codes.nbytes + stack.scales.nbytes) * min(len(x), E) / E
    return [
        Row(name=f"{name}: error of the largest product", value=100 * error, unit="%"),
        timed(name, settings, layer.codes.nbytes + layer.scales.nbytes, lambda: multiply(x, one)),
        timed(f"{kind}, {E} experts, {len(x)} rows", settings, read, lambda: multiply(x, experts, counts)),
    ]


def random_weight(settings: Settings, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(settings.device, settings.dtype)


def timed(name: str, settings: Settings, nbytes: float, run: Callable[[], Tensor]) -> Row:
    """Return the rate at which a weight of so many bytes is read, by the median of some runs."""
    seconds = []
    for _ in range(settings.num_tokens + 3):
        start = now(settings.device)
        run()
        seconds.append(now(settings.device) - start)
    return Row(name=name, value=nbytes / statistics.median(seconds[3:]) / 1e9, unit="GB/s")


def decode(settings: Settings) -> list[Row]:
    """Time a decoding step with the runner that is chosen for the model, and with plain PyTorch, in every form."""
    rows = []
    for weights in (None, *KINDS):
        model = random_model(settings).eval()
        if weights is not None:
            quantize_model(model, SCHEMES[weights])
        runners: dict[str, Runner] = {}
        for runner in (choose_runner(model), PlainRunner(model)):
            runners.setdefault(runner.name, runner)
        form = weights or str(settings.dtype).removeprefix("torch.")
        for batch in settings.batches:
            for name, runner in runners.items():
                rate = batch / decode_seconds(runner, batch, settings)
                rows.append(Row(name=f"{settings.size}, {form}, batch {batch}, {name}", value=rate, unit="tokens/s"))
    return rows


@torch.inference_mode()
def decode_seconds(runner: Runner, batch: int, settings: Settings) -> float:
    """Return the median seconds of a step that appends one token to each of `batch` rows."""
    positions = settings.context + settings.num_tokens + 1
    pool = runner.cache_pool(batch, positions, batch * positions)
    rows = [pool.take(positions) for _ in range(batch)]
    vocabulary = runner.model.config.language_config.vocab_size
    prompt = torch.arange(settings.context, device=settings.device).unsqueeze(0) % vocabulary
    for row in rows:
        runner.prefill(runner.model.language.embed(prompt), row)
    ids = [1 + number % (vocabulary - 1) for number in range(batch)]
    seconds = []
    for _ in range(settings.num_tokens):
        start = now(settings.device)
        ids = runner.decode(ids, rows, batch).argmax(1).tolist()
        seconds.append(now(settings.device) - start)
    for row in rows:
        pool.give_back(row)
    pool.close()
    return statistics.median(seconds[len(seconds) // 4 :])


def server(settings: Settings) -> list[Row]:
    """Time the server's engine with the built-in model: some requests at once, after the engine has prepared."""
    vlm = load("nano", device=str(settings.device), dtype=str(settings.dtype).removeprefix("torch."))
    sample = vlm.processor.encode([{"role": "user", "content": "Tell me a story."}])
    options = GenerateOptions(max_new_tokens=settings.num_tokens, logit_bias={vlm.processor.tokenizer.eos_id: -100.0})
    rows = []
    for batch in settings.batches[:3]:
        context = vlm.limits.max_context
        limits = EngineLimits(max_num_seqs=batch, max_context=context, cache_tokens=batch * context)
        with closing(Scheduler(vlm.runner, vlm.processor.tokenizer, limits)) as engine:
            start = now(settings.device)
            engine.prepare()
            prepared = now(settings.device)
            for _ in range(batch):
                engine.add(engine.make_task(Job(sample=sample, options=options)))
            while engine.has_work:
                engine.step()
            rate = engine.totals.generated_tokens / (now(settings.device) - prepared)
        rows.append(Row(name=f"nano, {batch} at once: preparing", value=prepared - start, unit="s"))
        rows.append(Row(name=f"nano, {batch} at once, {vlm.runner.name}", value=rate, unit="tokens/s"))
    return rows
