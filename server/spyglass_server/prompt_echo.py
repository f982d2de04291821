"""Returns a prompt to its caller: its text with `echo`, the logprobs of its tokens with `prompt_logprobs`."""

from collections.abc import Iterator, Sequence

from spyglass.v1 import inference_pb2 as pb
from spyglass_server.codec import events
from spyglass_server.engine.messages import Logprobs
from spyglass_server.prompt.tokenizer import TextTokenizer

_MAX_CHARACTERS = 128 << 10
"""Maximum text of a prompt per event."""
_MAX_LOGPROBS = 512
"""Maximum prompt logprobs per event; each takes up to a kilobyte."""
_FIRST = Logprobs(0.0, (), ())
"""The first token has no predecessor, hence probability 1."""


class PromptEcho:
    """The events that return one prompt, in the order in which the engine computes its logprobs."""

    def __init__(
        self, event_id: int, tokens: Sequence[int], tokenizer: TextTokenizer, *, echo: bool, logprobs: bool
    ) -> None:
        self._id = event_id
        self._tokens = tokens
        self._tokenizer = tokenizer
        self._echo = echo
        self._logprobs = logprobs
        self._num_sent = 0

    def begin(self) -> Iterator[pb.Event]:
        """Token ids and text, and the logprob of the first token; nothing if neither was requested."""
        if not (self._echo or self._logprobs):
            return
        text = self._tokenizer.written_text(self._tokens) if self._echo else ""
        first = self._take([_FIRST]) if self._logprobs else []
        yield events.prompt_echo(self._id, self._tokens, text[:_MAX_CHARACTERS], first)
        for at in range(_MAX_CHARACTERS, len(text), _MAX_CHARACTERS):
            yield events.prompt_echo(self._id, text=text[at : at + _MAX_CHARACTERS])

    def logprobs(self, found: Sequence[Logprobs]) -> Iterator[pb.Event]:
        """The logprobs of the next tokens."""
        for at in range(0, len(found), _MAX_LOGPROBS):
            yield events.prompt_echo(self._id, logprobs=self._take(found[at : at + _MAX_LOGPROBS]))

    def _take(self, found: Sequence[Logprobs]) -> list[pb.TokenLogprobs]:
        tokens = self._tokens[self._num_sent : self._num_sent + len(found)]
        self._num_sent += len(found)
        pairs = zip(tokens, found, strict=True)
        return [events.token_logprobs(token, logprobs, self._tokenizer.written) for token, logprobs in pairs]
