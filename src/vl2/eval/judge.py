"""A language model as judge, at any OpenAI-compatible endpoint, for answers that the rules cannot read."""

from __future__ import annotations

import asyncio

from vl2.data.jobs.chat_request import ChatRequest
from vl2.data.jobs.client import Client, Endpoint, RequestFailed
from vl2.errors import UserError
from vl2.eval.run import Judge

MAX_TOKENS = 256


def endpoint_judge(base_url: str, model: str) -> Judge:
    """Return a judge that asks one question at a time, greedily. UserError when the endpoint gives no answer."""
    endpoint = Endpoint(base_url=base_url, model=model, concurrency=1)

    async def ask(prompt: str) -> str:
        client = Client(endpoint=endpoint)
        try:
            return (await client.ask(ChatRequest(text=prompt, max_tokens=MAX_TOKENS))).text
        finally:
            await client.close()

    def judge(prompt: str) -> str:
        try:
            return asyncio.run(ask(prompt))
        except RequestFailed as failure:
            raise UserError(f"the judge at {base_url} gives no answer: {failure}") from None

    return judge
