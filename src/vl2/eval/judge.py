"""A language model as judge, at any OpenAI-compatible endpoint, for answers that the rules cannot read.

The model under test is never asked again for it: the judge reads the answers of a finished run.
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
AT_ONCE = 32  # answers judged before they are written


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Who judges: a name for the report, and what gives the replies to prompts, in order; None for no reply."""

    name: str
    ask: Callable[[Sequence[str]], Sequence[str | None]]


def endpoint_judge(base_url: str, model: str) -> Judge:
    """Return the judge at an endpoint, asked greedily. UserError when it answers nothing, not even a trial question."""
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
    """Return the reply, or None where this prompt alone gets none. RequestFailed if the endpoint answers nothing."""
    try:
        answer = await client.ask(ChatRequest(text=prompt, max_tokens=MAX_TOKENS))
    except RequestFailed:
        # One answer that is too long for the judge must not end the run, a wrong address must.
        await client.ask(ChatRequest(text=TRIAL, max_tokens=MAX_TOKENS))
        return None
    return answer.text


def judged(rule: JudgeRule, items: Sequence[Item], results: Sequence[Result], judge: Judge) -> Iterator[list[Result]]:
    """Yield the results of answers that were undecided with the judge's score, some at a time.

    Those to which the judge gave no reply are left out: they stay undecided.
    """
    by_id = {item.id: item for item in items}
    for start in range(0, len(results), AT_ONCE):
        some = results[start : start + AT_ONCE]
        replies = judge.ask([rule.prompt(by_id[result.id], result.answer) for result in some])
        answered = [(result, reply) for result, reply in zip(some, replies, strict=True) if reply is not None]
        if answered:
            yield [_with_score(result, rule.score(by_id[result.id], reply)) for result, reply in answered]


def _with_score(result: Result, score: Score) -> Result:
    return replace(result, score=score.value, read=score.read, is_undecided=False)
