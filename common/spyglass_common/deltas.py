"""Joining deltas of one choice while they wait to be read, in the server as in the bridge."""

from collections.abc import Iterable, MutableSequence

from spyglass.v1 import inference_pb2 as pb


def append_tool_calls(calls: MutableSequence[pb.ToolCallDelta], later: Iterable[pb.ToolCallDelta]) -> None:
    """Appends pieces of tool calls so that each call keeps one entry, as a Delta promises.

    The pieces of a call follow each other, so only the last entry can be continued.
    """
    for piece in later:
        if calls and calls[-1].index == piece.index:
            calls[-1].arguments_json += piece.arguments_json
        else:
            own = pb.ToolCallDelta()  # which later pieces change
            own.CopyFrom(piece)
            calls.append(own)
