"""Finds tool calls in the model's output while it is generated.

    {"name": "f", "parameters": {…}}        also "arguments", with "type": "function", several in a row or in []
    [f(a="b"), g()]                         Python
    <function=f>{…}</function>
    <tool_call>…</tool_call>                around any of the others
    brave_search.call(query="…")            after the control token <|python_tag|>

Calls start at the answer's first character or after that token; an answer that begins otherwise, or calls something
that is not a tool, is text. Each syntax has its own module, and all share a cursor.
"""

from spyglass_server.prompt.tool_calls.cursor import CallPiece
from spyglass_server.prompt.tool_calls.parser import ToolParser

__all__ = ["CallPiece", "ToolParser"]
