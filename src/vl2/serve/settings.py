"""The settings of the server. They are checked once, when it starts."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vl2.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """Limits of one request. A request that exceeds one gets a 4xx response that names the limit."""

    max_body_bytes: int = 64 << 20
    max_images: int = 16  # of one conversation
    max_image_bytes: int = 20 << 20  # of one encoded image
    max_image_pixels: int = 40_000_000  # of one image
    max_request_pixels: int = 120_000_000  # of all images of a request
    max_messages: int = 512
    max_choices: int = 8  # `n` times the number of prompts
    max_depth: int = 32  # of nested JSON
    fetch_timeout_s: float = 15.0  # for all images of a request together
    decode_cpu_s: float = 15.0  # CPU time for decoding and tiling one image
    # The wall-clock limit for the same. On a busy machine a second of work may take a minute, so this limit is long
    # where the system enforces CPU time, and then stops only decoders that hang.
    decode_timeout_s: float = 60.0 if sys.platform == "win32" else 300.0
    body_timeout_s: float = 60.0  # for receiving a request body
    write_timeout_s: float = 60.0  # a client that reads nothing for this time is disconnected
    default_max_tokens: int = 1024  # of an answer, if the request sets no limit

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UserError(f"{name} must be above 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of the whole server."""

    name: str  # model name in the API
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    allow_unauthenticated: bool = False  # allow a server without a key that other machines can reach
    allowed_folders: tuple[Path, ...] = ()  # images may be read from here, by path or file: URL
    allow_urls: bool = True  # fetch images from http(s) URLs
    allow_private_urls: bool = False  # also from private networks
    images_first: bool = False  # put the images of each message before its text
    calls_tools: bool = True  # describe the functions of a request to the model
    strict: bool = False  # refuse requests with fields that have no effect, instead of naming the fields in a header
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()  # allowed names in the Host header, in addition to those of the loopback
    adapters: Mapping[str, Path] = field(default_factory=dict)  # model name -> folder of a LoRA adapter
    drain_s: float = 30.0  # time for active requests to finish after SIGTERM
    max_in_flight_bytes: int = 256 << 20  # of all request bodies at the same time
    max_prepared: int = 64  # active requests with images; the same number without images is allowed in addition
    max_waiting: int = 256  # requests that wait to become active, with and without images each
    max_decoding_bytes: int = 768 << 20  # memory for all images that are decoded at the same time, and so for each
    max_kept_bytes: int = 512 << 20  # memory for the decoded images of all active requests
    limits: RequestLimits = field(default_factory=RequestLimits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"port must be in 0..65535, got {self.port}")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise UserError("the API key must be printable ASCII and not empty")
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
        """Tell whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
