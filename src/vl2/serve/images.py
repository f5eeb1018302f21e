"""Load the images of a request from data URLs, the web or allowed folders, within the request's limits."""

from __future__ import annotations

import asyncio
import itertools
import os
import stat
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from PIL import Image

from vl2.errors import UserError
from vl2.process.decode import refuse
from vl2.process.fetch import Cancellation, fetch
from vl2.process.image import describe_source, read_source
from vl2.process.processor import PreparedImages, Processor
from vl2.serve.admission import FairSemaphore
from vl2.serve.decoders import DecodeLimits, Decoders, EncodedImage, ImageHeader, TiledImage
from vl2.serve.settings import ServerSettings

MAX_PATH_CHARS = 4096  # the limit of most systems
MAX_PATH_PARTS = 256
T = TypeVar("T")

MAX_READING = 16  # requests whose images are fetched or read from files at the same time
MAX_READ_BYTES = 256 << 20  # bytes of images that were fetched or read and are not yet decoded


@dataclass(frozen=True, kw_only=True)
class Source:
    """An encoded image from a client: its bytes, or the data URL that contains them."""

    name: str  # for error messages
    data: bytes | str


class Admission(Protocol):
    """The part of `vl2.serve.service.Admission` that is needed here."""

    async def reserve_memory(self, num_bytes: int) -> None:
        """Wait until `num_bytes` of memory are free for the request's images, and reserve them."""


@dataclass(frozen=True, kw_only=True)
class LoadedImages:
    """The images of a request, ready for the model."""

    prepared: PreparedImages
    whole: tuple[Image.Image, ...]  # the untiled images, if the backend needs them


class ImageLoader:
    """Loads the images that clients name. Threads read the bytes, and processes decode the pixels."""

    def __init__(self, settings: ServerSettings, processor: Processor, *, needs_whole: bool) -> None:
        self._limits = limits = settings.limits
        self._processor, self._needs_whole = processor, needs_whole
        self._folders = tuple(folder.resolve() for folder in settings.allowed_folders)
        # The options for conversion to RGB are the processor's. What may be opened is up to the server's settings.
        self._options = replace(
            processor.image_options,
            allow_paths=False,
            allow_urls=settings.allow_urls,
            allow_private_urls=settings.allow_private_urls,
            max_bytes=limits.max_image_bytes,
        )
        self.decoders = Decoders(
            DecodeLimits(
                memory_bytes=settings.max_decoding_bytes, cpu_s=limits.decode_cpu_s, timeout_s=limits.decode_timeout_s
            )
        )
        self._readers = ThreadPoolExecutor(MAX_READING, thread_name_prefix="vl2-read")
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="vl2-tiles")
        self._read_bytes = FairSemaphore(MAX_READ_BYTES)

    def stop(self) -> None:
        self.decoders.stop()
        for threads in (self._readers, self._threads):
            threads.shutdown(wait=False, cancel_futures=True)

    async def load(self, messages: Sequence[Sequence[str]], client: str, admission: Admission) -> LoadedImages:
        """Load and tile the images of each message. `admission` reserves memory for the tiles.

        Raise UserError for the first image that cannot be read, is not an image, or is too large. The work stops when
        this coroutine is canceled.
        """
        sources = [source for message in messages for source in message]
        most = self._limits.max_images
        if len(sources) > most:
            raise UserError(f"a request may have at most {most} images, got {len(sources)}")
        num_elsewhere = sum(not _is_data_url(source) for source in sources)
        # The largest possible size is reserved once, because waiting for more while holding some could deadlock.
        read_bytes = min(num_elsewhere * self._limits.max_image_bytes, self._limits.max_body_bytes)
        async with self._read_bytes.hold(client, read_bytes):
            found = await self._read_all(sources) if num_elsewhere else _data_urls(sources)
            images = [EncodedImage(name=source.name, load=self._loader_of(source)) for source in found]
            headers = await self._read_headers(found, images, client)
            tiled = await self._tile(messages, images, headers, client, admission)
        sizes = [image.size for image in tiled]
        grids = self._processor.choose_grids(_by_message(sizes, messages))
        views = [image.views for image in tiled]
        whole = tuple(image.whole for image in tiled if image.whole is not None)
        del tiled
        prepared = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: self._processor.prepare_views(views, grids, sizes)
        )
        return LoadedImages(prepared=prepared, whole=whole)

    def _loader_of(self, source: Source) -> Callable[[], bytes]:
        data = source.data
        return (lambda: data) if isinstance(data, bytes) else (lambda: read_source(data, self._options))

    async def _read_headers(
        self, found: Sequence[Source], images: Sequence[EncodedImage], client: str
    ) -> list[ImageHeader]:
        limits, headers = self._limits, []
        pixels_left = limits.max_request_pixels
        for source, image in zip(found, images, strict=True):
            if pixels_left < 1:
                raise UserError(f"the images of the request have more than {limits.max_request_pixels} pixels")
            options = replace(self._options, max_pixels=min(limits.max_image_pixels, pixels_left))
            headers.append(await self.decoders.read_header(image, options, client, len(source.data)))
            pixels_left -= headers[-1].size[0] * headers[-1].size[1]
        return headers

    async def _tile(
        self,
        messages: Sequence[Sequence[str]],
        images: Sequence[EncodedImage],
        headers: Sequence[ImageHeader],
        client: str,
        admission: Admission,
    ) -> list[TiledImage]:
        cutter, color = self._processor.cutter, self._processor.config.padding_color
        sizes = [header.size for header in headers]
        grids = self._processor.choose_grids(_by_message(sizes, messages))
        num_floats = 3 * sum(cutter.plan(grid).num_pixels for grid in grids)
        num_pixels = sum(width * height for width, height in sizes) if self._needs_whole else 0
        await admission.reserve_memory(4 * (num_floats + num_pixels))
        options = replace(self._options, max_pixels=self._limits.max_image_pixels)
        tiled: list[TiledImage | None] = [None] * len(images)
        while None in tiled:
            for index, (image, header) in enumerate(zip(images, headers, strict=True)):
                tiled[index] = tiled[index] or await self.decoders.decode_tiles(
                    image,
                    header,
                    cutter.plan(grids[index]),
                    color=color,
                    has_whole=self._needs_whole,
                    options=options,
                    client=client,
                )
            # If decoding shows that an image is rotated, the grids of all images may change; then tile those again.
            true_grids = self._processor.choose_grids(
                _by_message([tiled_image.size for tiled_image in tiled if tiled_image is not None], messages)
            )
            tiled = [
                tiled_image if grid == true else None
                for tiled_image, grid, true in zip(tiled, grids, true_grids, strict=True)
            ]
            grids = true_grids
        return [tiled_image for tiled_image in tiled if tiled_image is not None]

    async def _read_all(self, sources: Sequence[str]) -> list[Source]:
        cancellation = Cancellation()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._readers, self._read_each, sources, cancellation
            )
        except asyncio.CancelledError:
            cancellation.cancel()
            raise

    def _read_each(self, sources: Sequence[str], cancellation: Cancellation) -> list[Source]:
        """Read the encoded bytes of the sources. Raise UserError for the first that cannot be read."""
        limits = self._limits
        deadline = time.monotonic() + limits.fetch_timeout_s
        bytes_left = limits.max_body_bytes
        found = []
        for source in sources:
            data = self._read(source, deadline, min(limits.max_image_bytes, bytes_left), cancellation)
            bytes_left -= len(data) if isinstance(data, bytes) else 0
            if bytes_left < 1:
                raise UserError(f"the images of the request have more than {limits.max_body_bytes} bytes")
            found.append(Source(name=describe_source(source), data=data))
        return found

    def _read(self, source: str, deadline: float, max_bytes: int, cancellation: Cancellation) -> bytes | str:
        """Read the bytes of a URL or file. Return a data URL unchanged."""
        scheme, name = source[:8].lower(), describe_source(source)
        if _is_data_url(source):
            return source
        if scheme.startswith(("http://", "https://")):
            if not self._options.allow_urls:
                refuse(name, "URLs are not fetched here; send a data URL")
            seconds_left = deadline - time.monotonic()
            if seconds_left <= 0:
                raise UserError(f"the images of the request were not there within {self._limits.fetch_timeout_s:g} s")
            return fetch(
                source,
                max_bytes=max_bytes,
                timeout_s=seconds_left,
                allow_private=self._options.allow_private_urls,
                cancellation=cancellation,
            )
        if not self._folders:
            refuse(name, "files are not served here; send a data URL or an http(s) URL")
        return self._read_file(source, name, max_bytes)

    def _read_file(self, source: str, name: str, max_bytes: int) -> bytes:
        path = self._allowed_path(source, name)
        try:
            # O_NOFOLLOW: a symbolic link may have been put there since the check. O_NONBLOCK: do not wait on a FIFO.
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            refuse(name, error.strerror or "it cannot be opened")
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            refuse(name, "it is no regular file")
        with os.fdopen(handle, "rb") as file:
            return file.read(max_bytes + 1)

    def _allowed_path(self, source: str, name: str) -> Path:
        """Return the resolved path, which must be inside an allowed folder. No file outside is accessed."""
        # Resolving takes quadratic time in a path's parts, so its length is limited. Percent encoding can triple it.
        if len(source) > 3 * MAX_PATH_CHARS:
            refuse(name, f"a path may have at most {MAX_PATH_CHARS} characters")
        text = source
        if source[:5].lower() == "file:":
            try:
                parts = urlsplit(source)
            except ValueError:
                refuse(name, "it is no usable URL")
            if parts.netloc not in ("", "localhost"):
                refuse(name, "a file: URL must name a file of this machine")
            text = unquote(parts.path)
        elif "://" in source[:32]:
            refuse(name, "only data, http, https and file URLs are allowed")
        if len(text) > MAX_PATH_CHARS or len(Path(text).parts) > MAX_PATH_PARTS:
            refuse(name, f"a path may have at most {MAX_PATH_CHARS} characters and {MAX_PATH_PARTS} parts")
        for folder in self._folders:
            try:
                path = (folder / text).resolve()
            except (OSError, ValueError, RuntimeError):  # for instance a NUL in the name, or a loop of links
                continue
            if path.is_relative_to(folder):
                return path
        refuse(name, "it is not inside an allowed folder")


def _is_data_url(source: str) -> bool:
    return source[:5].lower() == "data:"


def _data_urls(sources: Sequence[str]) -> list[Source]:
    return [Source(name=describe_source(source), data=source) for source in sources]


def _by_message(items: Sequence[T], messages: Sequence[Sequence[object]]) -> list[list[T]]:
    """Split the items into lists that have the same lengths as the messages."""
    rest = iter(items)
    return [list(itertools.islice(rest, len(message))) for message in messages]
