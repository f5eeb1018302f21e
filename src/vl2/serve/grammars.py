"""Check the grammars of answers before the engine compiles them, since a client may have written them to take long."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict

from vl2.infer.constraint import Grammars, raise_error
from vl2.serve.decoders import Decoders

MAX_KEPT = 256  # sets of grammars known to be harmless


class GrammarChecker:
    """Tries the grammars of a constraint in a process with limits, and remembers those that passed."""

    def __init__(self, decoders: Decoders) -> None:
        self._decoders = decoders
        self._passed: OrderedDict[bytes, None] = OrderedDict()

    async def check(self, grammars: Grammars, client: str) -> None:
        """Raise UserError if a grammar is wrong, or takes too much time or memory to compile."""
        texts = [text for _, text in grammars]
        digest = hashlib.sha256(json.dumps(texts).encode()).digest()
        if digest in self._passed:
            return
        if (wrong := await self._decoders.try_grammars(texts, client)) is not None:
            index, error = wrong
            raise_error(error, grammars[index][0])
        self._passed[digest] = None
        if len(self._passed) > MAX_KEPT:
            self._passed.popitem(last=False)
