"""Pictures are decoded in processes: with the same bits as here, within bounds, and one bad picture hurts no other."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

from vl2.errors import UserError
from vl2.infer.vlm import VLM
from vl2.process.decode import ImageOptions, decoding_bytes
from vl2.process.pixels import CutPlan, tile_canvases
from vl2.process.processor import Processor
from vl2.serve.decoders import DecodeLimits, Decoders, EncodedImage, ImageHeader, TiledImage
from vl2.serve.images import ImageLoader
from vl2.serve.settings import ServerSettings

from . import hostile_pictures as pictures
from .pictures import EXAMPLES, data_url

OPTIONS = ImageOptions(max_pixels=40_000_000)
PLAN = CutPlan(tiles=tile_canvases((1, 1), 56))
GOOD = (EXAMPLES / "line.png").read_bytes()
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="addresses are limited on Linux alone")


def picture(data: bytes, name: str = "x") -> EncodedImage:
    return EncodedImage(name=name, load=lambda: data)


async def read_header(decoders: Decoders, data: bytes) -> ImageHeader:
    return await decoders.read_header(picture(data), OPTIONS, "client", len(data))


async def decode_tiles(decoders: Decoders, data: bytes, *, has_whole: bool = False) -> TiledImage:
    found = await read_header(decoders, data)
    return await decoders.decode_tiles(
        picture(data), found, PLAN, color=(1, 2, 3), has_whole=has_whole, options=OPTIONS, client="client"
    )


def run(work: Callable[[Decoders], Coroutine[Any, Any, None]], **limits: Any) -> None:
    given = {"memory_bytes": 640 << 20, "cpu_s": 30.0, "timeout_s": 120.0, **limits}

    async def main() -> None:
        decoders = Decoders(DecodeLimits(**given))
        await decoders.start()
        try:
            await work(decoders)
        finally:
            decoders.stop()

    asyncio.run(main())


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not come about"
        await asyncio.sleep(0.02)


class FreeAdmission:
    """An admission with room for everything."""

    num_bytes = 0

    async def reserve_memory(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes


VARIED = {
    "png": (EXAMPLES / "scene.png").read_bytes(),
    "jpeg": pictures.noise(700, 300, "JPEG"),
    "turned jpeg": pictures.saved(
        Image.open(EXAMPLES / "scene.png").convert("RGB"), "JPEG", exif=pictures.exif_of_a_turn()
    ),
    "cmyk": pictures.flat("CMYK", 300, 200, "JPEG"),
    "transparent": pictures.flat_png(400, 100, color_type=6, value=77),
    "deep grey": pictures.flat_png(90, 500, depth=16, color_type=0, value=99),
    "palette": pictures.saved(Image.open(EXAMPLES / "scene.png").convert("RGB").quantize(16), "GIF"),
    "webp": pictures.noise(200, 200, "WEBP"),
    "tiff": pictures.noise(200, 100, "TIFF", compression="tiff_lzw"),
    "thin": pictures.noise(3000, 2, "PNG"),
    "one pixel": pictures.flat_png(1, 1),
    "turned behind its pixels": pictures.png_turned_behind_its_pixels(600, 100),
}  # fmt: skip


@pytest.mark.parametrize("tiling", ["paper", "per-image", "budget:4000"])
@pytest.mark.parametrize(
    "messages",
    [
        *([[name]] for name in VARIED),
        [["png", "turned behind its pixels"]],
        [["jpeg"], ["thin", "webp"]],
        [list(VARIED)],
    ],
    ids=lambda messages: "+".join(name for message in messages for name in message)[:40],
)
def test_processes_give_the_bits_that_the_processor_does(
    nano: VLM, messages: Sequence[Sequence[str]], tiling: str
) -> None:
    processor: Processor = nano.processor.with_tiling(tiling)
    expected = processor.prepare_images([[VARIED[name] for name in message] for message in messages])
    admission = FreeAdmission()

    async def main() -> None:
        loader = ImageLoader(ServerSettings(name="nano"), processor, needs_whole=True)
        try:
            sources = [[data_url(VARIED[name]) for name in message] for message in messages]
            loaded = await loader.load(sources, "client", admission)
        finally:
            loader.stop()
        assert torch.equal(loaded.prepared.tiles, expected.tiles)
        assert loaded.prepared.tiles.is_contiguous()
        assert loaded.prepared.grids == expected.grids
        assert loaded.prepared.sizes == expected.sizes
        assert loaded.prepared.tokens == expected.tokens
        from vl2.process.image import open_image

        opened = [open_image(VARIED[name]) for message in messages for name in message]
        assert [whole.tobytes() for whole in loaded.whole] == [whole.tobytes() for whole in opened]

    asyncio.run(main())
    assert admission.num_bytes >= 4 * expected.tiles.numel() or "turned behind its pixels" in str(messages)


def test_a_process_that_decodes_imports_no_pytorch() -> None:
    program = "import sys, vl2.process.decode_worker; print('torch' in sys.modules, 'ssl' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert made.stdout.split() == ["False", "False"]


@POSIX
def test_a_picture_that_takes_too_much_of_the_processor_is_refused_and_others_are_not() -> None:
    async def work(decoders: Decoders) -> None:
        slow = asyncio.create_task(decode_tiles(decoders, pictures.ppm_of_odd_depth(2500, 2500)))
        others = [asyncio.create_task(decode_tiles(decoders, GOOD)) for _ in range(4)]
        with pytest.raises(UserError, match="cannot read image x: decoding it takes more than 1 s of the processor"):
            await slow
        assert len({(await other).views.tiles.tobytes() for other in others}) == 1
        assert (await decode_tiles(decoders, GOOD)).views.tiles.shape == (1, 56, 56, 3)

    run(work, cpu_s=1.0)


def test_a_picture_is_not_waited_for_beyond_the_deadline() -> None:
    async def work(decoders: Decoders) -> None:
        with pytest.raises(UserError, match="decoding it took longer than 1 s"):
            await decode_tiles(decoders, pictures.ppm_of_odd_depth(2500, 2500))
        decoders.limits = DecodeLimits(memory_bytes=640 << 20, cpu_s=30.0, timeout_s=120.0)
        assert (await decode_tiles(decoders, GOOD)).size == Image.open(EXAMPLES / "line.png").size

    run(work, timeout_s=1.0)


@LINUX
def test_a_picture_that_takes_more_memory_than_its_header_said_is_refused() -> None:
    async def work(decoders: Decoders) -> None:
        (pid,) = decoders.process_ids
        data = pictures.flat_png(6000, 5000, color_type=6)
        lie = ImageHeader(size=(6000, 5000), decoding_bytes=20 << 20)
        with pytest.raises(UserError, match="cannot read image x: there is not enough memory to decode it"):
            await decoders.decode_tiles(
                picture(data), lie, PLAN, color=(0, 0, 0), has_whole=False, options=OPTIONS, client="a"
            )
        assert is_running(pid), "it failed for itself alone"
        assert (await decode_tiles(decoders, data)).size == (6000, 5000)

    run(work)


def test_a_picture_that_takes_more_than_all_memory_for_decoding_is_refused_by_its_header() -> None:
    async def work(decoders: Decoders) -> None:
        for data in (pictures.flat_png(2000, 2000), pictures.flat_png(1, 1_000_000)):
            with pytest.raises(UserError, match="memory, more than the limit of 50 MiB"):
                await read_header(decoders, data)

    run(work, memory_bytes=50 << 20)


LARGE = {
    "jpeg": lambda: pictures.noise(3000, 3000, "JPEG", quality=95, subsampling=0, progressive=True),
    "cmyk jpeg": lambda: pictures.flat("CMYK", 3000, 3000, "JPEG", progressive=True),
    "png": lambda: pictures.flat_png(3000, 3000),
    "transparent png": lambda: pictures.flat_png(3000, 3000, color_type=6, value=9),
    "deep png": lambda: pictures.flat_png(3000, 3000, depth=16, color_type=0, value=9),
    "deep rgb png": lambda: pictures.flat_png(3000, 3000, depth=16, color_type=6, value=9),
    "float tiff": lambda: pictures.flat("F", 3000, 3000, "TIFF", compression="tiff_lzw"),
    "tiff of one strip": lambda: pictures.flat("RGBA", 3000, 3000, "TIFF", compression="tiff_adobe_deflate",
                                               strip_size=1 << 30),
    "webp": lambda: pictures.flat("RGBA", 3000, 3000, "WEBP", method=0),
    "avif": lambda: pictures.flat("RGBA", 3000, 3000, "AVIF", speed=10),
    "jpeg 2000": lambda: pictures.flat("RGBA", 3000, 3000, "JPEG2000"),
    "gif": lambda: pictures.flat("P", 3000, 3000, "GIF"),
    "bmp": lambda: pictures.flat("RGB", 3000, 3000, "BMP"),
}  # fmt: skip


@LINUX
def test_the_header_of_a_large_webp_is_read_although_its_decoder_asks_for_both_frames_at_once() -> None:
    async def work(decoders: Decoders) -> None:
        data = pictures.flat("RGB", 8000, 5000, "WEBP", method=0)
        assert (await read_header(decoders, data)).size == (8000, 5000)
        assert (await decode_tiles(decoders, data)).size == (8000, 5000)

    run(work, memory_bytes=ServerSettings.max_decoding_bytes)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "PPM", "ICO"])
def test_the_largest_picture_that_a_server_takes_fits_into_its_memory_in_every_format_but_one(kind: str) -> None:
    settings = ServerSettings(name="nano")
    header = Image.new("RGB", (8000, settings.limits.max_image_pixels // 8000))
    header.format = kind  # type: ignore[misc]
    assert decoding_bytes(header, settings.limits.max_image_bytes) <= settings.max_decoding_bytes  # type: ignore[arg-type]


@LINUX
@pytest.mark.parametrize("kind", LARGE)
def test_what_is_taken_to_be_needed_for_decoding_is_enough_and_is_not_exceeded(kind: str) -> None:
    data = LARGE[kind]()

    async def work(decoders: Decoders) -> None:
        (pid,) = decoders.process_ids
        await decode_tiles(decoders, GOOD)
        before = psutil.Process(pid).memory_info().rss
        found = await decode_tiles(
            decoders, data, has_whole=False
        )  # in a process that may have no more addresses than that
        assert found.size == (3000, 3000)
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        peak = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
        assert peak - before < (await read_header(decoders, data)).decoding_bytes

    run(work)


def test_a_process_that_dies_takes_one_picture_with_it() -> None:
    async def work(decoders: Decoders) -> None:
        (pid,) = decoders.process_ids
        slow = asyncio.create_task(decode_tiles(decoders, pictures.ppm_of_odd_depth(2500, 2500)))
        await until(lambda: psutil.Process(pid).cpu_times().user > 0.5)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(UserError, match="or fails"):
            await slow
        assert (await decode_tiles(decoders, GOOD)).views.tiles.shape == (1, 56, 56, 3)
        # One that died while nobody needed it is noticed too.
        for idle in decoders.process_ids:
            os.kill(idle, signal.SIGKILL)
        await until(lambda: not any(map(is_running, decoders.process_ids)))
        assert (await decode_tiles(decoders, GOOD)).views.tiles.shape == (1, 56, 56, 3)

    run(work)


@LINUX
def test_a_process_knows_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VL2_API_KEY", "very-secret")

    async def work(decoders: Decoders) -> None:
        await decode_tiles(decoders, GOOD)
        (pid,) = decoders.process_ids
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"PATH=" in environment
        assert b"very-secret" not in environment

    run(work)


def test_who_no_longer_waits_ends_the_work_and_gives_back_what_it_took() -> None:
    async def work(decoders: Decoders) -> None:
        (pid,) = decoders.process_ids
        data = pictures.ppm_of_odd_depth(2500, 2500)
        tasks = [asyncio.create_task(decode_tiles(decoders, data)) for _ in range(12)]
        await until(lambda: decoders.num_waiting > 0 and psutil.Process(pid).cpu_times().user > 0.5)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert decoders.num_waiting == 0
        assert decoders.memory.num_taken == 0
        await until(lambda: not is_running(pid))
        assert (await decode_tiles(decoders, GOOD)).views.tiles.shape == (1, 56, 56, 3)

    run(work)


def test_pictures_together_take_no_more_memory_than_there_is_for_all() -> None:
    data = pictures.flat_png(2000, 2000)

    async def work(decoders: Decoders) -> None:
        most = 0
        tasks = [asyncio.create_task(decode_tiles(decoders, data)) for _ in range(6)]
        while not all(task.done() for task in tasks):
            most = max(most, decoders.memory.num_taken)
            await asyncio.sleep(0.002)
        assert {task.result().size for task in tasks} == {(2000, 2000)}
        needed = (await read_header(decoders, data)).decoding_bytes
        assert needed <= most <= 70 << 20 < 2 * needed

    run(work, memory_bytes=70 << 20)


def test_after_the_end_nothing_runs_and_nothing_starts() -> None:
    async def work(decoders: Decoders) -> None:
        pids = decoders.process_ids
        slow = asyncio.create_task(decode_tiles(decoders, pictures.ppm_of_odd_depth(2500, 2500)))
        await until(lambda: psutil.Process(pids[0]).cpu_times().user > 0.5)
        decoders.stop()
        for _ in range(2):
            with pytest.raises(UserError, match="the server"):
                await slow
            slow = asyncio.create_task(decode_tiles(decoders, GOOD))
        with pytest.raises(UserError, match="the server"):
            await slow
        await until(lambda: not any(map(is_running, pids)))

    run(work)
