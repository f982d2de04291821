"""Answers in DeepInfra's own form."""

import time
from collections.abc import Sequence
from typing import Any

from spyglass.v1 import inference_pb2 as pb
from spyglass_bridge.openai.choices import finite, text_of
from spyglass_bridge.openai.serialization import FINISH_REASONS, compact_json
from spyglass_common.deltas import ChoiceDelta


class NativeAnswer:
    """Collects an answer and returns it as a whole or token by token."""

    def __init__(self, request_id: str, n: int) -> None:
        self._request_id = request_id
        self._began_s = time.monotonic()
        self._texts: list[list[str]] = [[] for _ in range(n)]
        self._finish_reason: str | None = None

    def add(self, deltas: Sequence[ChoiceDelta]) -> None:
        for delta in deltas:
            self._texts[delta.index].append(delta.text)
            if delta.finish_reason:
                self._finish_reason = FINISH_REASONS[delta.finish_reason]

    def build(self, finished: pb.Finished) -> dict[str, Any]:
        usage = finished.usage
        return {
            "request_id": self._request_id,
            "inference_status": {
                "status": "succeeded",
                "runtime_ms": round((time.monotonic() - self._began_s) * 1e3),
                "cost": usage.estimated_cost,
                "tokens_input": usage.prompt_tokens,
                "tokens_generated": usage.completion_tokens,
            },
            "results": [{"generated_text": "".join(texts)} for texts in self._texts],
            "num_tokens": usage.completion_tokens,
            "num_input_tokens": usage.prompt_tokens,
        }

    def begin(self) -> list[str]:
        return []

    def deltas(self, deltas: Sequence[ChoiceDelta]) -> list[str]:
        """Returns an event for each token. A token's text may lack a character that the next one completes."""
        self.add(deltas)
        return [
            _event({"id": token, "text": text_of(found.bytes), "logprob": finite(found.logprob)})
            for delta in deltas
            for token, found in zip(delta.token_ids, delta.logprobs, strict=True)
        ]

    def end(self, finished: pb.Finished) -> list[str]:
        """Returns the event with the whole text of the first choice."""
        usage = finished.usage
        details = {
            "finish_reason": self._finish_reason,
            "generated_tokens": usage.completion_tokens,
            "prompt_tokens": usage.prompt_tokens,
            "cost": usage.estimated_cost,
        }
        return [compact_json({"token": None, "generated_text": "".join(self._texts[0]), "details": details})]


def _event(token: dict[str, Any]) -> str:
    return compact_json({"token": {**token, "special": not token["text"]}, "generated_text": None, "details": None})
