"""What this package uses of vLLM, played from a script: `install` puts it where `import vllm` finds it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@dataclass
class FakeVllm:
    """Answers every prompt with the same token ids, and remembers what it was asked."""

    token_ids: Sequence[int]
    finish_reason: str = "stop"
    asked: list[Any] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)
    is_down: bool = False

    async def generate(self, prompt: Any, sampling: Any, request_id: str) -> AsyncIterator[Any]:
        self.asked.append(SimpleNamespace(prompt=prompt, sampling=sampling, id=request_id))
        for index, token_id in enumerate(self.token_ids):
            is_last = index == len(self.token_ids) - 1
            logprobs = None
            if sampling.logprobs is not None:
                logprobs = [{token_id: SimpleNamespace(logprob=-0.5), 5: SimpleNamespace(logprob=-2.0)}]
            part = SimpleNamespace(
                token_ids=[token_id], logprobs=logprobs, finish_reason=self.finish_reason if is_last else None
            )
            yield SimpleNamespace(outputs=[part])

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def shutdown(self) -> None:
        self.is_down = True


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeVllm) -> None:
    class Keywords(SimpleNamespace):
        pass

    def make_engine(arguments: Any) -> FakeVllm:
        fake.arguments = vars(arguments)
        return fake

    modules = {
        "vllm": {"AsyncEngineArgs": Keywords, "SamplingParams": Keywords},
        "vllm.sampling_params": {
            "RequestOutputKind": SimpleNamespace(DELTA="delta"),
            "StructuredOutputsParams": Keywords,
        },
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": SimpleNamespace(from_engine_args=make_engine)},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
