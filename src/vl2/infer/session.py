"""A conversation that remembers its turns and images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from vl2.process.conversation import Turn, user_turn
from vl2.process.image import ImageSource, open_image
from vl2.process.messages import Conversation, read_turns, to_messages

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from vl2.infer.reply import Reply
    from vl2.infer.vlm import VLM, OptionFields


class Session:
    """A conversation with a model. A question is kept only with its answer: after an error it can be asked again."""

    def __init__(self, vlm: VLM, *, system: str | None = None) -> None:
        self._vlm = vlm
        self._system = system
        self.reply: Reply | None = None  # the last answer, of which a part may be missing
        self.turns: list[Turn] = []
        self.clear()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The turns as messages in OpenAI's format, with the opened images."""
        return to_messages(self.turns)

    @messages.setter
    def messages(self, messages: Conversation) -> None:
        self.turns = list(read_turns(messages))

    def clear(self) -> None:
        """Forget every turn but the system prompt."""
        self.turns = [] if self._system is None else [Turn(role="system", pieces=(self._system,))]

    def ask(self, text: str, images: Sequence[ImageSource] = (), **options: Unpack[OptionFields]) -> Reply:
        """Ask a question with all earlier turns as context, and keep the question and the answer."""
        asked = [*self.turns, self._user(text, images)]
        reply = self._vlm.generate(asked, **options)
        self.turns, self.reply = [*asked, _answer(reply.text)], reply
        return reply

    def stream(self, text: str, images: Sequence[ImageSource] = (), **options: Unpack[OptionFields]) -> Iterator[str]:
        """Ask a question and yield the answer piece by piece.

        The turn is kept when the answer ends. If the iterator is closed earlier, the part generated so far is kept.
        """
        from vl2.infer.vlm import ReplyBuilder, make_options

        asked = [*self.turns, self._user(text, images)]
        made, sample = make_options(options), self._vlm.processor.encode(asked)
        builder = ReplyBuilder(sample, self._vlm.processor.kind)
        try:
            for event in self._vlm.sample_events(sample, made):
                builder.add(event)
                if event.piece:
                    yield event.piece
        finally:
            reply = builder.build()
            if reply.text:
                self.turns, self.reply = [*asked, _answer(reply.text)], reply

    def _user(self, text: str, images: Sequence[ImageSource]) -> Turn:
        # Open the images once: later turns must not depend on a file that may move or a URL that may change.
        options = self._vlm.processor.image_options
        return user_turn(text, [i if isinstance(i, Image.Image) else open_image(i, options) for i in images])


def _answer(text: str) -> Turn:
    return Turn(role="assistant", pieces=(text,))
