"""A conversation that remembers its turns and images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from vl2.infer.prompts import user_message
from vl2.process.image import open_image

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from vl2.infer.reply import Reply
    from vl2.infer.vlm import VLM, OptionFields


class Session:
    """Turns are kept only when they are complete: an error or a stopped answer can be asked again."""

    def __init__(self, vlm: VLM, *, system: str | None = None) -> None:
        self._vlm = vlm
        self._system = system
        self.messages: list[Mapping[str, Any]] = []
        self.clear()

    def clear(self) -> None:
        """Forget every turn but the system prompt."""
        self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]

    def ask(self, text: str, images: Sequence[Any] = (), **options: Unpack[OptionFields]) -> Reply:
        """Ask with all earlier turns in view, and remember the answer."""
        asked = [*self.messages, self._user(text, images)]
        reply = self._vlm.generate(asked, **options)
        self.messages = [*asked, {"role": "assistant", "content": reply.text}]
        return reply

    def stream(self, text: str, images: Sequence[Any] = (), **options: Unpack[OptionFields]) -> Iterator[str]:
        """Ask and yield the answer piece by piece. Remembered when it ends, or as far as it came when closed."""
        asked = [*self.messages, self._user(text, images)]
        answer = ""
        try:
            for event in self._vlm.events(asked, **options):
                answer += event.piece
                if event.piece:
                    yield event.piece
        finally:
            if answer.strip():
                self.messages = [*asked, {"role": "assistant", "content": answer.strip()}]

    def _user(self, text: str, images: Sequence[Any]) -> Mapping[str, Any]:
        # Opened once: later turns do not depend on a file that may move, or a URL that may change.
        options = self._vlm.processor.image_options
        return user_message(text, [i if isinstance(i, Image.Image) else open_image(i, options) for i in images])
