"""The settings of a server, checked once when it starts."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vl2.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """What one request may cost. Everything above gets a 4xx that names the limit."""

    max_body_bytes: int = 64 << 20
    max_images: int = 16  # of one conversation
    max_image_bytes: int = 20 << 20  # of one picture, as it was sent or fetched
    max_image_pixels: int = 40_000_000  # of one picture
    max_request_pixels: int = 120_000_000  # of all pictures of a request
    max_messages: int = 512
    max_choices: int = 8  # n, and prompts of one completion request
    max_depth: int = 32  # of nested JSON
    fetch_timeout_s: float = 15.0  # for all pictures of a request together
    decode_cpu_s: float = 15.0  # CPU time for decoding and tiling one picture
    # The same in wall-clock time. Where the system limits CPU time, this one catches only what hangs without using any:
    # on a busy machine a second of work may take a minute.
    decode_timeout_s: float = 60.0 if sys.platform == "win32" else 300.0
    body_timeout_s: float = 60.0  # from the first byte of a request to its last
    write_timeout_s: float = 60.0  # a client that reads nothing for so long is dropped
    default_max_tokens: int = 1024  # of an answer, where the request says nothing

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UserError(f"{name} must be above 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Everything that is not about one request."""

    name: str  # of the model, as clients call it
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    allow_unauthenticated: bool = False  # without a key, also where other machines can reach the server
    allowed_folders: tuple[Path, ...] = ()  # pictures may be read from here, by path or file: URL
    allow_urls: bool = True
    allow_private_urls: bool = False
    strict: bool = False  # refuse fields of requests that have no effect, in place of naming them
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()  # names that the Host header may have, beside those of the loopback
    adapters: Mapping[str, Path] = field(default_factory=dict)
    drain_s: float = 30.0  # how long accepted requests may go on after SIGTERM
    max_in_flight_bytes: int = 256 << 20  # of all request bodies at once
    max_prepared: int = 64  # requests with pictures that are prepared or answered at once, and as many without
    max_waiting: int = 256  # requests that wait to be among these
    max_decoding_bytes: int = 768 << 20  # of memory, for all pictures that are being decoded: none may take more
    max_kept_bytes: int = 512 << 20  # of memory, for the pictures of all requests that wait for answers
    limits: RequestLimits = field(default_factory=RequestLimits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"port must be in 0..65535, got {self.port}")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise UserError("the API key must be printable ASCII, and not empty")
        if self.api_key is None and not self.is_loopback and not self.allow_unauthenticated:
            raise UserError(
                f"other machines can reach a server on --host {self.host!r}: set VL2_API_KEY to the key that clients "
                "must send, or give --allow-unauthenticated to let everyone ask"
            )
        for folder in self.allowed_folders:
            if not folder.is_dir():
                raise UserError(f"--allow-files: {folder} is no folder")
        for name in self.adapters:
            if name == self.name or not name.strip():
                raise UserError(f"--lora: an adapter needs a name other than the model's, {self.name!r}, got {name!r}")
        if self.drain_s < 0:
            raise UserError(f"the time to drain must be at least 0 s, got {self.drain_s:g}")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
