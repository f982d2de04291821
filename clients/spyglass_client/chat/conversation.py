"""A conversation: the turns sent to the model, and the attachments of the next question."""

import re
from pathlib import Path

from spyglass_client.aio import AsyncClient
from spyglass_client.answer import Answer
from spyglass_client.generation import AsyncGeneration
from spyglass_client.messages import ImagePart, Message, assistant, image, system, user
from spyglass_client.request import Options


class Conversation:
    """Turns of a user and a model. A question whose answer is not kept adds no turn and keeps its attachments."""

    def __init__(self, client: AsyncClient, options: Options, system_prompt: str | None = None) -> None:
        self.system_prompt = system_prompt
        self._client = client
        self._options = options
        self._turns: list[Message] = []
        self._attached: list[str | ImagePart] = []
        self._asked: Message | None = None

    @property
    def has_attachments(self) -> bool:
        """Whether anything is attached to the next question."""
        return bool(self._attached)

    def attach_picture(self, data: bytes) -> None:
        """Attaches a picture to the next question."""
        self._attached.append(image(data))

    def attach_file(self, path: str) -> str:
        """Attaches a text to the next question and returns it. Raises OSError, and ValueError if it is not text."""
        try:
            text = Path(path).read_text("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8 text") from None
        if not text.strip():
            raise ValueError(f"{path} is empty")
        longest = max(map(len, re.findall("`+", text)), default=0)
        fence = "`" * max(3, longest + 1)
        self._attached.append(f"{Path(path).name}:\n{fence}\n{text.rstrip()}\n{fence}\n\n")
        return text

    def ask(self, question: str) -> AsyncGeneration:
        """Asks, with all attachments."""
        self._asked = user(*self._attached, question)
        before = [system(self.system_prompt)] if self.system_prompt else []
        return self._client.stream_chat([*before, *self._turns, self._asked], **self._options)

    def keep(self, answer: Answer) -> None:
        """Adds the last question and its answer to the conversation, unless the answer has no text."""
        assert self._asked is not None
        if answer.text:
            self._turns += [self._asked, assistant(answer.text)]
            self._attached.clear()
            self._asked = None

    def take_back(self) -> str | None:
        """Takes back the last question, and its answer if there is one. Its attachments are attached again."""
        if self._asked is None and self._turns:
            self._asked = self._turns[-2]
            self._attached[:0] = self._asked.parts[:-1]
            del self._turns[-2:]
        if self._asked is None:
            return None
        question = self._asked.parts[-1]
        assert isinstance(question, str)
        return question

    def detach(self) -> None:
        """Removes the attachments of the next question."""
        self._attached.clear()

    def clear(self) -> None:
        """Starts over. The system prompt stays."""
        self._turns.clear()
        self._attached.clear()
        self._asked = None
