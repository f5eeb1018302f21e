"""Load on `vl2 serve`: many clients with images at once, against one after another, on the built-in model.

    python benchmarks/serving.py --minutes 5 --clients 32

First one client asks alone for a while, then all ask at once, each its next question when it has the last answer. The
pictures are drawn anew for every request, so no cache helps. Reported: failures, the wait for the first token and for
the whole answer (median and worst), tokens and answers per second both ways, and the server's memory over time.
Exit code 1 if a request failed, the worst wait is above 5 times the median, or the throughput is below 3 times that of
one at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image, ImageDraw

QUESTIONS = (
    "Describe this picture in detail.",
    "What is shown here? Tell everything that you see.",
    "Read all the text.",
    "Tell a long story about this picture.",
)

SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string", "minLength": 2000}},
    "required": ["text"],
    "additionalProperties": False,
}


@dataclass
class Tally:
    """What one phase saw."""

    first_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    tokens: int = 0
    visual_tokens: int = 0
    failures: list[str] = field(default_factory=list)
    took_s: float = 0.0
    memory_mb: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        return {
            "answers": len(self.whole_s),
            "failures": len(self.failures),
            "answers_per_s": round(len(self.whole_s) / self.took_s, 2),
            "tokens_per_s": round(self.tokens / self.took_s, 1),
            "tokens_per_answer": round(self.tokens / max(1, len(self.whole_s)), 1),
            "visual_tokens_per_answer": round(self.visual_tokens / max(1, len(self.whole_s)), 1),
            "first_token_s": spread(self.first_s),
            "whole_answer_s": spread(self.whole_s),
        }


def spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 3),
        "worst": round(ordered[-1], 3),
        "worst_by_median": round(ordered[-1] / statistics.median(ordered), 2),
    }


def picture(rng: random.Random) -> str:
    """Draw shapes and words on a page of some size, as a data URL."""
    size = rng.choice(((160, 160), (320, 200), (300, 420), (480, 320), (500, 500)))
    image = Image.new("RGB", size, tuple(rng.randrange(200, 256) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randrange(2, 7)):
        x, y = rng.randrange(size[0] - 20), rng.randrange(size[1] - 20)
        shape = rng.choice((pen.rectangle, pen.ellipse))
        shape((x, y, x + rng.randrange(10, 120), y + rng.randrange(10, 120)), fill=tuple(rng.randbytes(3)))
    pen.text((10, 10), f"No {rng.randrange(10**6)}", fill="black", font_size=24)
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def request(rng: random.Random, max_tokens: int) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": picture(rng)}},
        {"type": "text", "text": rng.choice(QUESTIONS)},
    ]
    return {
        "model": "nano",
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": round(max_tokens * rng.uniform(0.5, 1.5)),
        # So small a model ends its answers after a few words: it must fill a field.
        "response_format": {"type": "json_schema", "json_schema": {"name": "page", "schema": SCHEMA}},
        "temperature": 0.7,
        "seed": rng.randrange(2**31),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def ask(client: httpx.AsyncClient, asked: dict[str, Any], tally: Tally) -> None:
    began = time.perf_counter()
    first: float | None = None
    usage: dict[str, Any] | None = None
    try:
        async with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
            if answer.status_code != 200:
                tally.failures.append(f"{answer.status_code}: {(await answer.aread()).decode()[:200]}")
                return
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    tally.failures.append(event["error"]["message"])
                    return
                usage = event.get("usage") or usage
                if first is None and any(c["delta"].get("content") for c in event["choices"]):
                    first = time.perf_counter()
    except httpx.HTTPError as error:
        tally.failures.append(repr(error))
        return
    ended = time.perf_counter()
    if usage is None:
        tally.failures.append("the stream ended early")
        return
    tally.first_s.append((first or ended) - began)
    tally.whole_s.append(ended - began)
    tally.tokens += usage["completion_tokens"]
    tally.visual_tokens += usage["prompt_tokens_details"]["visual_tokens"]


async def load(url: str, num_clients: int, seconds: float, max_tokens: int, server: psutil.Process, seed: int) -> Tally:
    """Let so many clients ask, each one question after another, until the time is over; then the last ones end."""
    tally = Tally()
    began = time.perf_counter()
    is_over = asyncio.Event()

    async def client(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        async with httpx.AsyncClient(base_url=url, timeout=600) as http:
            while time.perf_counter() - began < seconds:
                await ask(http, request(rng, max_tokens), tally)

    async def watch() -> None:
        while not is_over.is_set():
            tally.memory_mb.append(server.memory_info().rss / 2**20)
            await asyncio.sleep(max(0.5, seconds / 100))

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(client(number) for number in range(num_clients)))
    tally.took_s = time.perf_counter() - began
    is_over.set()
    await watcher
    return tally


def start(arguments: list[str]) -> tuple[subprocess.Popen[str], str]:
    program = "import sys; from vl2.cli.main import main; main(sys.argv[1:])"
    command = [
        sys.executable,
        "-c",
        program,
        "serve",
        "--port",
        "0",
        "--log-level",
        "warning",
        "--max-num-seqs",
        "32",
        *arguments,
    ]
    log = Path(os.environ.get("TMPDIR", "/tmp")) / f"vl2-serving-{os.getpid()}.log"
    with open(log, "w") as file:
        running = subprocess.Popen(command, stderr=file, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running.poll() is None:
        ports = [c.laddr.port for c in psutil.Process(running.pid).net_connections("tcp") if c.status == "LISTEN"]
        for port in ports:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).status_code == 200:
                    return running, f"http://127.0.0.1:{port}"
            except httpx.HTTPError:
                pass
        time.sleep(0.2)
    raise SystemExit(f"the server did not start; its log is {log}")


def flatness(memory_mb: list[float]) -> dict[str, Any]:
    """Return the memory of each tenth of the time, medians of some readings: the caches fill in the first of them."""
    part = max(1, len(memory_mb) // 10)
    tenths = [memory_mb[first : first + part] for first in range(0, part * 10, part)]
    return {
        "first_mb": round(memory_mb[0]),
        "by_tenth_mb": [round(statistics.median(tenth)) for tenth in tenths if tenth],
        "peak_mb": round(max(memory_mb)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--alone-s", type=float, default=60.0, help="how long one client asks alone, for comparison")
    parser.add_argument("--max-tokens", type=int, default=128, help="on average; from half to one and a half of it")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="further arguments of vl2 serve")
    options = parser.parse_args()
    running, url = start(options.serve)
    try:
        server = psutil.Process(running.pid)
        asyncio.run(load(url, 2, 3.0, options.max_tokens, server, seed=0))  # warm up
        alone = asyncio.run(load(url, 1, options.alone_s, options.max_tokens, server, seed=1))
        together = asyncio.run(load(url, options.clients, options.minutes * 60, options.max_tokens, server, seed=2))
        metrics = httpx.get(f"{url}/metrics").text
    finally:
        running.terminate()
        running.wait(60)
    ratio = (together.tokens / together.took_s) / (alone.tokens / alone.took_s)
    wait = spread(together.whole_s).get("worst_by_median", 0.0)
    print(json.dumps({
        "clients": options.clients,
        "one_at_a_time": alone.summary(),
        "together": together.summary(),
        "throughput_ratio": round(ratio, 2),
        "memory": flatness(together.memory_mb),
        "decoded_together": rows_per_step(metrics),
        "first_failures": together.failures[:3],
    }, indent=2))  # fmt: skip
    sys.exit(bool(together.failures or alone.failures) or wait > 5 or ratio < 3)


def rows_per_step(metrics: str) -> float:
    return round(_number(metrics, "vl2_generated_tokens_total") / _number(metrics, "vl2_decode_steps_total"), 1)


def _number(text: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


if __name__ == "__main__":
    main()
