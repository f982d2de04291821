"""Tool calls in what the model writes, found while it writes them.

    {"name": "f", "parameters": {…}}        also "arguments", with "type": "function", several in a row or in []
    [f(a="b"), g()]                         Python
    <function=f>{…}</function>
    <tool_call>…</tool_call>                around any of the others
    brave_search.call(query="…")            after the control token <|python_tag|>

An answer calls tools from its first character on, or from that token on; an answer that begins otherwise, or calls
something that is not a tool, is text. There is a file for each syntax, and a cursor that they share.
"""

from spyglass_server.prompt.tool_calls.cursor import CallPiece
from spyglass_server.prompt.tool_calls.parser import ToolParser

__all__ = ["CallPiece", "ToolParser"]
