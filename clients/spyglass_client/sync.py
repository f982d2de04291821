"""The client for programs without an event loop: `AsyncClient` on a background thread. It is thread-safe."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self, Unpack

from spyglass_client.account import ModelInfo, UsageSummary
from spyglass_client.aio import AsyncClient
from spyglass_client.answer import Answer, TextChunk
from spyglass_client.background import BackgroundLoop
from spyglass_client.generation import AsyncGeneration
from spyglass_client.helpers import P
from spyglass_client.messages import Message
from spyglass_client.request import Options, QuestionOptions
from spyglass_client.status import ServerStatus
from spyglass_client.target import Tls
from spyglass_client.tools import Tool


class Generation:
    """A generation that starts when first iterated, entered or asked for its result.

    Use it as `with client.stream("…") as generation: for chunk in generation: …`. Leaving the loop or the
    `with` early cancels it. A failure is raised as a SpyglassError.
    """

    def __init__(self, generation: AsyncGeneration, loop: BackgroundLoop) -> None:
        self._generation = generation
        self._loop = loop

    @property
    def request_id(self) -> str:
        """The name of the generation in the server's log and ledger."""
        return self._generation.request_id

    @property
    def answer(self) -> Answer:
        """The answer, once the loop has ended. Raises RuntimeError before that."""
        return self._generation.answer

    def cancel(self) -> None:
        """Ends the generation early, from any thread; its loop then ends, with the text so far as the answer."""
        self._loop.call(self._generation.cancel)

    def result(self) -> Answer:
        """Waits for the end and returns the answer, including unread chunks."""
        return self._loop.run(self._generation.result())

    def __iter__(self) -> Iterator[TextChunk]:
        try:
            while (chunk := self._loop.run(self._generation.next_chunk())) is not None:
                yield chunk
        finally:
            self.cancel()

    def __enter__(self) -> Self:
        self._loop.run(self._generation.begin())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class Client:
    """Asks a Spyglass server over gRPC.

        with Client() as client:
            print(client.generate("What is in it?", images=["cat.png"]).text)

    Takes the arguments of `AsyncClient` and has the same methods.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        api_key: str | None = None,
        tls: Tls | None = None,
        call_timeout_s: float = 30.0,
    ) -> None:
        self._client = AsyncClient(target, api_key=api_key, tls=tls, call_timeout_s=call_timeout_s)
        self._loop = BackgroundLoop("spyglass client")
        self._closed = False

    @property
    def target(self) -> str:
        """The server's address."""
        return self._client.target

    def generate(self, question: str | None = None, **options: Unpack[QuestionOptions]) -> Answer:
        """Asks and waits for the whole answer.

        Give a question, optionally with `images` and a `system` prompt; or a ready prompt as `text` or
        `tokens`, to which no chat template is applied.
        """
        return self._loop.run(self._client.generate(question, **options))

    def stream(self, question: str | None = None, **options: Unpack[QuestionOptions]) -> Generation:
        """Asks and streams the answer; takes the arguments of `generate`."""
        generation = self._client.stream(question, **options)
        return Generation(generation, self._loop)

    def chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> Answer:
        """Continues a conversation and waits for the whole answer."""
        return self._loop.run(self._client.chat(messages, **options))

    def stream_chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> Generation:
        """Continues a conversation and streams the answer."""
        return Generation(self._client.stream_chat(messages, **options), self._loop)

    def parse(self, kind: type[P], messages: Sequence[Message], **options: Unpack[Options]) -> P:
        """Continues a conversation and parses the answer into a type, such as a pydantic model, that constrains it."""
        return self._loop.run(self._client.parse(kind, messages, **options))

    def run_tools(
        self, messages: Sequence[Message], tools: Sequence[Tool], /, *, max_rounds: int = 8, **options: Unpack[Options]
    ) -> tuple[Answer, list[Message]]:
        """Continues a conversation, running the tools that the model calls, until it answers in text."""
        return self._loop.run(self._client.run_tools(messages, tools, max_rounds=max_rounds, **options))

    def count_tokens(self, question: str | None = None, **options: Unpack[QuestionOptions]) -> int:
        """Counts the prompt tokens of a request; takes the arguments of `generate`. An image counts as one."""
        return self._loop.run(self._client.count_tokens(question, **options))

    def count_chat_tokens(self, messages: Sequence[Message], **options: Unpack[Options]) -> int:
        """Counts the prompt tokens of a conversation; takes the arguments of `chat`."""
        return self._loop.run(self._client.count_chat_tokens(messages, **options))

    def models(self) -> list[ModelInfo]:
        """Lists the models that the server runs; the first serves requests that name none."""
        return self._loop.run(self._client.models())

    def usage(
        self,
        max_records: int = 0,
        *,
        model: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        group_by: Sequence[str] = (),
    ) -> UsageSummary:
        """Returns the key's usage, with sums by `group_by` (key, model, day) and its latest `max_records` generations.

        At most 1,000 are listed. Only generations that began at or after `since` and before `until` count.
        """
        usage = self._client.usage(max_records, model=model, since=since, until=until, group_by=group_by)
        return self._loop.run(usage)

    def status(self) -> ServerStatus:
        """Returns the server's status: its state, load and caches."""
        return self._loop.run(self._client.status())

    def check_access(self) -> str:
        """Checks that the key is accepted and returns its public name."""
        return self._loop.run(self._client.check_access())

    def close(self) -> None:
        """Ends running generations with ClientClosedError and closes the connection. May be called twice."""
        if not self._closed:
            self._closed = True
            self._loop.run(self._client.close())
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
