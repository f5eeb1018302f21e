"""The prompts that the released model was trained to answer, for the calls that need a fixed one."""

from vl2.errors import UserError


def locate_prompt(query: str) -> str:
    """Ask for the boxes of what `query` describes."""
    if not query.strip():
        raise UserError("the query is empty: say what to locate")
    return f"<|ref|>{query.strip()}<|/ref|>."


def describe_prompt(*, grounded: bool) -> str:
    """Ask for a description; grounded, with a box behind everything named."""
    return ("<|grounding|>" if grounded else "") + "Can you describe this image in detail?"
