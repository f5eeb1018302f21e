"""What schemathesis cannot know: the name of the model that is served. Answers are kept short: they take the time."""

from __future__ import annotations

from typing import Any

import schemathesis

MAX_TOKENS = 4


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Let requests get past the name of the model."""
    del context
    if not isinstance(body, dict):
        return body
    changed = dict(body)
    if isinstance(changed.get("model"), str):
        changed["model"] = "nano"
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if isinstance(changed.get(name), int) and changed[name] > MAX_TOKENS:
            changed[name] = MAX_TOKENS
    return changed
