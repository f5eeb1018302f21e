"""Score answers that the rules cannot read with a language model as judge, at any OpenAI-compatible endpoint.

The judge reads the answers of a finished run, so the model under test is not run again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from vl2.curate.jobs.client import ChatRequest, Client, Endpoint, RequestFailed
from vl2.errors import UserError
from vl2.eval.task import Item, JudgeRule, Result, Score

MAX_TOKENS = 256
TRIAL = "Reply with the letter A."
BATCH_SIZE = 32  # answers judged in parallel, and then saved


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A judge: its name for the report, and a function from prompts to replies, with None for a missing reply."""

    name: str
    ask: Callable[[Sequence[str]], Sequence[str | None]]


def endpoint_judge(base_url: str, model: str) -> Judge:
    """Return the judge at an endpoint, with greedy decoding.

    Its `ask` raises UserError if the endpoint fails for a prompt and for a trial question.
    """
    endpoint = Endpoint(base_url=base_url, model=model)

    async def ask_all(prompts: Sequence[str]) -> list[str | None]:
        client = Client(endpoint=endpoint)
        try:
            return await asyncio.gather(*(_reply(client, prompt) for prompt in prompts))
        finally:
            await client.close()

    def ask(prompts: Sequence[str]) -> list[str | None]:
        try:
            return asyncio.run(ask_all(prompts))
        except RequestFailed as failure:
            raise UserError(f"the judge at {base_url} gives no answer: {failure}") from None

    return Judge(name=f"{model} at {base_url}", ask=ask)


async def _reply(client: Client, prompt: str) -> str | None:
    """Return the reply, or None if only this prompt fails. Raise RequestFailed if a trial question fails too."""
    try:
        answer = await client.ask(ChatRequest(text=prompt, max_tokens=MAX_TOKENS))
    except RequestFailed:
        # An answer that is too long for the judge must not end the run, but a wrong address must.
        await client.ask(ChatRequest(text=TRIAL, max_tokens=MAX_TOKENS))
        return None
    return answer.text


def judge_results(
    rule: JudgeRule, items: Sequence[Item], results: Sequence[Result], judge: Judge
) -> Iterator[list[Result]]:
    """Yield batches of undecided results with the judge's scores. Results without a reply stay undecided."""
    by_id = {item.id: item for item in items}
    for start in range(0, len(results), BATCH_SIZE):
        some = results[start : start + BATCH_SIZE]
        replies = judge.ask([rule.prompt(by_id[result.id], result.answer) for result in some])
        answered = [(result, reply) for result, reply in zip(some, replies, strict=True) if reply is not None]
        if answered:
            yield [_with_score(result, rule.score(by_id[result.id], reply)) for result, reply in answered]


def _with_score(result: Result, score: Score) -> Result:
    return replace(result, score=score.value, read=score.read, is_undecided=False)
