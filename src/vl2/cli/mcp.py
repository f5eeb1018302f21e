"""The command `vl2 mcp`, which gives an agent the model's tools over the Model Context Protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vl2.cli.flags import ModelFlags
from vl2.errors import UserError
from vl2.files import local_path


@dataclass(frozen=True, kw_only=True)
class Mcp:
    """Give an agent the tools read, extract, locate, describe and ask, over the Model Context Protocol.

    An agent's settings name the command, and the agent starts it. Files are read from the allowed folders only.

    Examples:
      vl2 mcp --model tiny --allow-files ~/scans
      vl2 mcp --http --port 8765 --model tiny
    """

    allow_files: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FOLDER"), tyro.conf.UseAppendAction] = ()
    """let the agent name files in this folder and below (default: the current folder)"""
    http: bool = False
    """serve streamable HTTP at /mcp on this machine, instead of stdin and stdout"""
    port: int = 8765
    """with --http"""
    model: ModelFlags = field(default_factory=ModelFlags)

    def run(self) -> None:
        from vl2.mcp_server import make_server

        if not 1 <= self.port <= 65535:
            raise UserError(f"port must be in 1..65535, got {self.port}")
        folders = [local_path(folder) for folder in self.allow_files] or [Path.cwd()]
        self.model.check()
        server = make_server(lambda: self.model.load(quiet=True), folders)
        transport: Literal["stdio", "streamable-http"] = "streamable-http" if self.http else "stdio"
        server.run(transport, **({"host": "127.0.0.1", "port": self.port} if self.http else {}))
