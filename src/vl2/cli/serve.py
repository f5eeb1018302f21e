"""The command `vl2 serve`, which runs the OpenAI-compatible server."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vl2.cli.flags import ModelFlags, OptionalInt, OptionalText, OutputFlags
from vl2.cli.log_flags import LogFlags, log_file
from vl2.errors import UserError
from vl2.files import local_path
from vl2.optional_imports import install_extra

if TYPE_CHECKING:
    from vl2.serve.answer_log import ServerLog
    from vl2.serve.backend import Backend
    from vl2.serve.settings import ServerSettings


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve the model to OpenAI clients, with boxes beside the text: /v1/chat/completions, /v1/responses and more.

    It listens on 127.0.0.1 unless told otherwise. Where other machines can reach it, it needs a key, which is read from
    VL2_API_KEY, or given by --api-key, where other users of this machine can see it. SIGTERM or Ctrl-C lets accepted
    requests finish. docs/serving.md says the rest.

    Examples:
      vl2 serve
      vl2 serve --model tiny --port 9000 --allow-files ~/scans
      VL2_API_KEY=secret vl2 serve --host 0.0.0.0 --lora receipts=tuned/adapter
    """

    model: ModelFlags = field(default_factory=ModelFlags)
    name: OptionalText = None
    """what clients call the model; the name that --model gives by default"""
    engine: Literal["vl2", "vllm"] = "vl2"
    """what computes: this package, or vLLM where it is installed"""
    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1"
    port: int = 8000
    """0 takes a free one, which the log names"""
    api_key: OptionalText = None
    """what clients must send; VL2_API_KEY by default, and none if that is not set"""
    allow_unauthenticated: bool = False
    """ask for no key although other machines can reach --host"""
    lora: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FOLDER"), tyro.conf.UseAppendAction] = ()
    """serve an adapter beside the model, under a name of its own"""
    vllm_arg: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE"), tyro.conf.UseAppendAction] = ()
    """an argument of vLLM's engine, such as gpu_memory_utilization=0.5; with --engine vllm"""
    allow_files: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FOLDER"), tyro.conf.UseAppendAction] = ()
    """let requests name pictures in this folder"""
    no_urls: bool = False
    """fetch no pictures from the web"""
    allow_private_urls: bool = False
    """fetch pictures from private addresses too: only where every client may see everything that this machine can"""
    images_first: bool = False
    """put the pictures of each message before its text, where clients send them after it"""
    no_tools: bool = False
    """ignore the functions of requests, in place of describing them to the model"""
    strict: bool = False
    """refuse fields of requests that are unknown or without effect, in place of naming them in a header"""
    allow_host: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME"), tyro.conf.UseAppendAction] = ()
    """answer under this host name too, where no key is set"""
    cors_origin: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ORIGIN"), tyro.conf.UseAppendAction] = ()
    """let pages of this origin ask, e.g. https://example.org"""
    max_num_seqs: Annotated[int, tyro.conf.arg(aliases=["--max-rows"])] = 16
    """requests prefilled and decoded together"""
    cache_tokens: OptionalInt = None
    """tokens of all requests under way; by default a quarter of --max-num-seqs full contexts, on CUDA all of them"""
    max_waiting: int = 256
    """requests that may wait; more get a 429"""
    max_images: int = 16
    """of one conversation"""
    max_body_mb: int = 64
    """of one request"""
    default_max_tokens: int = 1024
    """of an answer, where a request says nothing"""
    drain_s: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 30.0
    """how long accepted requests may go on after SIGTERM"""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    output: OutputFlags = field(default_factory=OutputFlags)
    log: LogFlags = field(default_factory=LogFlags)

    def run(self) -> None:
        try:
            import fastapi  # noqa: F401
            import prometheus_client  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError as missing:
            raise UserError(f"vl2 serve needs {missing.name}: {install_extra('serve')}") from None
        from vl2.serve.app import make_app
        from vl2.serve.server import bind, run_server
        from vl2.serve.telemetry import set_up_logs

        self.model.check()
        self._check_ranks()
        if self.vllm_arg and self.engine != "vllm":
            raise UserError("--vllm-arg is for --engine vllm")
        settings = self._settings()
        answer_log = self._answer_log()
        listener = bind(self.host, self.port)
        set_up_logs(self.log_level)
        backend = self._vllm(settings) if self.engine == "vllm" else self._own(settings)
        run_server(make_app(backend, settings, answer_log), listener)

    def _check_ranks(self) -> None:
        """Raise UserError for what several processes do not serve, and end the server if another process fails."""
        from vl2.cli.main import end_in_one_line
        from vl2.cli.ranks import leader

        if (first := leader()) is None:
            return
        if self.engine == "vllm":
            raise UserError("vLLM starts its own processes: start it without torchrun")
        if self.lora:
            raise UserError("adapters beside a model are served by one process only: start without torchrun")
        first.on_failure = end_in_one_line

    def _settings(self) -> ServerSettings:
        from vl2.serve.settings import RequestLimits, ServerSettings

        return ServerSettings(
            name=self.name or self._model_name(),
            host=self.host,
            port=self.port,
            api_key=self.api_key if self.api_key is not None else os.environ.get("VL2_API_KEY") or None,
            allow_unauthenticated=self.allow_unauthenticated,
            allowed_folders=tuple(local_path(folder) for folder in self.allow_files),
            allow_urls=not self.no_urls,
            allow_private_urls=self.allow_private_urls,
            images_first=self.images_first,
            calls_tools=not self.no_tools,
            strict=self.strict,
            cors_origins=self.cors_origin,
            allowed_hosts=self.allow_host,
            adapters=dict(map(_named_folder, self.lora)),
            drain_s=self.drain_s,
            max_prepared=max(4 * self.max_num_seqs, 16),
            max_waiting=self.max_waiting,
            # vLLM gets whole images, which are larger than their tiles.
            max_kept_bytes=2 << 30 if self.engine == "vllm" else ServerSettings.max_kept_bytes,
            limits=RequestLimits(
                max_body_bytes=self.max_body_mb << 20,
                max_images=self.max_images,
                default_max_tokens=self.default_max_tokens,
            ),
        )

    def _answer_log(self) -> ServerLog | None:
        from vl2.serve.answer_log import ServerLog

        file = log_file(self.log.log)
        if file is None:
            self.log.check()
            return None
        return ServerLog(file, keeps_bytes=self.log.log_pictures)

    def _model_name(self) -> str:
        path = local_path(self.model.model)
        return path.resolve().name if path.is_dir() else self.model.model

    def _own(self, settings: ServerSettings) -> Backend:
        from vl2.infer.engine.scheduler import EngineLimits
        from vl2.infer.vlm import choose_device
        from vl2.serve.engine_backend import EngineBackend

        context = self.model.context(quiet=self.output.quiet)
        cache_tokens = self.cache_tokens
        if cache_tokens is None:
            # CUDA graphs decode rows of the whole context, so fewer tokens would mean fewer requests at once.
            share = 1 if choose_device(self.model.device).type == "cuda" else 4
            cache_tokens = max(context, self.max_num_seqs * context // share)
        limits = EngineLimits(
            max_num_seqs=self.max_num_seqs,
            max_context=context,
            cache_tokens=cache_tokens,
            prefill_chunk=self.model.prefill_chunk or EngineLimits.prefill_chunk,
            max_waiting=self.max_waiting,
        )
        vlm = self.model.load(quiet=self.output.quiet, cache_tokens=cache_tokens)
        return EngineBackend(vlm, limits, settings.adapters)

    def _vllm(self, settings: ServerSettings) -> Backend:
        from vl2.config import ModelConfig
        from vl2.process.processor import Processor
        from vl2.serve.vllm_backend import VllmBackend

        if self.model.adapter is not None or settings.adapters:
            raise UserError("vLLM runs no adapters of this model: merge the adapter into a checkpoint and serve that")
        if self.model.cache != "auto":
            raise UserError(f"--cache {self.model.cache} is for this package's engine: vLLM has a cache of its own")
        folder = self.model.locate(quiet=self.output.quiet)
        processor = Processor.from_folder(folder, tiling=self.model.tiling_rule(), max_tiles=self.model.max_tiles)
        config = ModelConfig.from_file(folder / "config.json")
        config.require_deepseek_vl2("serving with vLLM")
        return VllmBackend(
            folder,
            processor,
            max_context=self.model.max_context or config.language_config.max_position_embeddings,
            max_images=self.max_images,
            dtype=self.model.dtype,
            more=dict(map(_named_value, self.vllm_arg)),
        )


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise UserError(f"--lora must be NAME=FOLDER, got {text!r}")
    return name, local_path(folder)


def _named_value(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UserError(f"--vllm-arg must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
