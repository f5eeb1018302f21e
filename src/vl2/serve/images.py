"""The pictures of a request: from data URLs, the web, or allowed folders, within the limits of a request."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from PIL import Image

from vl2.errors import UserError
from vl2.process.decode import ImageOptions, decode_image, refuse
from vl2.process.fetch import fetch
from vl2.process.image import describe_source, open_image
from vl2.serve.settings import ServerSettings

MAX_PATH_CHARS = 4096  # as most systems have it
MAX_PATH_PARTS = 256
MAX_DECODING = 4  # requests whose pictures are decoded and cut at once: what bounds the memory of pixels


@dataclass(frozen=True, kw_only=True)
class Source:
    """A picture as it came: its bytes, or a data URL that holds them."""

    name: str  # for messages
    data: bytes | str


class ImageLoader:
    """Opens what clients name. Runs in worker threads: it waits for networks and disks."""

    def __init__(self, settings: ServerSettings, options: ImageOptions) -> None:
        """`options` say how pictures become RGB; what may be opened is the server's to say."""
        self._limits = settings.limits
        self.room = threading.BoundedSemaphore(MAX_DECODING)
        self._folders = tuple(folder.resolve() for folder in settings.allowed_folders)
        self._options = replace(
            options,
            allow_paths=False,
            allow_urls=settings.allow_urls,
            allow_private_urls=settings.allow_private_urls,
            max_bytes=settings.limits.max_image_bytes,
        )

    def read_all(self, sources: Sequence[str]) -> list[Source]:
        """Return what the sources hold, undecoded. UserError names the first that cannot be had, and why."""
        limits = self._limits
        if len(sources) > limits.max_images:
            raise UserError(f"a request may have at most {limits.max_images} images, got {len(sources)}")
        deadline = time.monotonic() + limits.fetch_timeout_s
        bytes_left = limits.max_body_bytes
        found = []
        for source in sources:
            data = self._read(source, deadline, min(limits.max_image_bytes, bytes_left))
            bytes_left -= len(data) if isinstance(data, bytes) else 0
            if bytes_left < 1:
                raise UserError(f"the images of the request have more than {limits.max_body_bytes} bytes")
            found.append(Source(name=describe_source(source), data=data))
        return found

    def decode_all(self, sources: Sequence[Source]) -> list[Image.Image]:
        """Return the pictures in RGB. UserError names the first that is none, or too large. Call it with `room`."""
        limits = self._limits
        images: list[Image.Image] = []
        pixels_left = limits.max_request_pixels
        for source in sources:
            if pixels_left < 1:
                raise UserError(f"the images of the request have more than {limits.max_request_pixels} pixels")
            options = replace(self._options, max_pixels=min(limits.max_image_pixels, pixels_left))
            if isinstance(source.data, bytes):
                image = decode_image(source.data, source.name, options)
            else:
                image = open_image(source.data, options)
            pixels_left -= image.width * image.height
            images.append(image)
        return images

    def _read(self, source: str, deadline: float, max_bytes: int) -> bytes | str:
        """Return the bytes of a URL or file; a data URL stays as it is, its bytes are here already."""
        scheme, name = source[:8].lower(), describe_source(source)
        if scheme.startswith("data:"):
            return source
        if scheme.startswith(("http://", "https://")):
            if not self._options.allow_urls:
                refuse(name, "URLs are not fetched here; send a data URL")
            seconds_left = deadline - time.monotonic()
            if seconds_left <= 0:
                raise UserError(f"the images of the request were not there within {self._limits.fetch_timeout_s:g} s")
            allow_private = self._options.allow_private_urls
            return fetch(source, max_bytes=max_bytes, timeout_s=seconds_left, allow_private=allow_private)
        if not self._folders:
            refuse(name, "files are not served here; send a data URL or an http(s) URL")
        return self._read_file(source, name, max_bytes)

    def _read_file(self, source: str, name: str, max_bytes: int) -> bytes:
        path = self._allowed_path(source, name)
        try:
            # Not through a link put there since, and without waiting for the writer of a pipe.
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            refuse(name, error.strerror or "it cannot be opened")
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            refuse(name, "it is no regular file")
        with os.fdopen(handle, "rb") as file:
            return file.read(max_bytes + 1)

    def _allowed_path(self, source: str, name: str) -> Path:
        """Return where the file really is, which must be inside an allowed folder. Elsewhere nothing is looked at."""
        # Python resolves a path part by part, each from the beginning. The percent encoding of a URL triples a name.
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
            except (OSError, ValueError, RuntimeError):  # a NUL in the name, a circle of links
                continue
            if path.is_relative_to(folder):
                return path
        refuse(name, "it is not inside an allowed folder")
