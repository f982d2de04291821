"""What is known of an ended generation, for its observers: metrics, traces and the log."""

from collections.abc import Callable
from dataclasses import dataclass

from spyglass.v1 import inference_pb2 as pb
from spyglass_server.engine.messages import FinishReason
from spyglass_server.errors import SpyglassError
from spyglass_server.timeline import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A generation that has ended. Without `usage`, it had not started; `model` is empty if none was resolved.

    `finish` is why its answer ended: LENGTH if any choice did so. `error` is None if it ended well. A report contains
    no text or images of requests and answers.
    """

    request_id: str
    operation: str
    """chat or text_completion."""
    model: str
    key_id: str
    tenant: str
    traceparent: str
    timeline: Timeline
    usage: pb.Usage | None
    finish: FinishReason | None
    error: SpyglassError | None
    num_images: int
    num_choices: int

    @property
    def code(self) -> str:
        """OK, or the name of a canonical status code."""
        return "OK" if self.error is None else self.error.code.name


Observer = Callable[[Report], None]
