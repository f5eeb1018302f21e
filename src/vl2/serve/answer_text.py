"""One answer as it comes: its text, its tokens, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vl2.infer.engine.task import Output
from vl2.infer.reply import Reply, Usage
from vl2.process.sample import Sample
from vl2.process.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0  # JSON has no infinity


@dataclass(kw_only=True)
class AnswerText:
    """Collects the outputs of one request. The pieces that `add` returns, joined, are the text of the whole reply."""

    sample: Sample
    tokenizer: Tokenizer
    strips: bool = True  # outer white space; what continues a raw prompt begins with it
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)  # in OpenAI's form, one for each token but the end
    finish_reason: str | None = None
    _held: str = ""  # white space, until something follows it

    def add(self, output: Output) -> str:
        """Take an output and return the text that is now certain. Raises what the output failed with."""
        if output.error is not None:
            raise output.error
        if output.token_id is not None:
            self.token_ids.append(output.token_id)
            if output.logprobs is not None and output.token_id != self.tokenizer.eos_id:
                self.logprobs.append(self._logprob(output))
        if output.finish_reason is not None:
            # A loop that was cut off is, to a client that knows OpenAI's reasons, an answer cut off.
            self.finish_reason = "stop" if output.finish_reason == "stop" else "length"
        if not self.strips:
            self.text += output.piece
            return output.piece
        pending = self._held + output.piece
        certain = pending.rstrip()
        self._held = pending[len(certain) :]
        if not self.text:
            certain = certain.lstrip()
            self._held = self._held if certain else ""
        self.text += certain
        return certain

    def reply(self) -> Reply:
        """Return the reply as the Python API gives it."""
        return Reply(
            text=self.text,
            token_ids=tuple(self.token_ids),
            finish_reason="stop" if self.finish_reason == "stop" else "length",
            usage=Usage(
                prompt_tokens=len(self.sample),
                visual_tokens=int(self.sample.image_mask.sum()),
                completion_tokens=len(self.token_ids),
            ),
            image_sizes=self.sample.image_sizes,
        )

    def boxes(self) -> list[dict[str, Any]]:
        """Return the boxes of the answer, in pixels of the image and in 999ths."""
        found: list[dict[str, Any]] = self.reply().to_dict()["boxes"]
        return found

    def _logprob(self, output: Output) -> dict[str, Any]:
        assert output.logprobs is not None
        assert output.token_id is not None
        likeliest = [self._entry(i, p) for i, p in output.logprobs.likeliest.items()]
        return {**self._entry(output.token_id, output.logprobs.chosen), "top_logprobs": likeliest}

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self.tokenizer.token_bytes(token_id, skip_special=False)
        return {
            "token": data.decode("utf-8", "replace"),
            "logprob": max(logprob, LEAST_LOGPROB),
            "bytes": list(data),
        }


def usage_of(answers: list[AnswerText], num_prompts: int, num_reused: int) -> dict[str, Any]:
    """Return the tokens of a request in the form of chat completions; each prompt counts once."""
    prompts = answers[:: max(1, len(answers) // num_prompts)]
    prompt = sum(len(answer.sample) for answer in prompts)
    completion = sum(len(answer.token_ids) for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": num_reused,
            "visual_tokens": sum(int(answer.sample.image_mask.sum()) for answer in prompts),
        },
    }
