"""Turns conversations into tokens and tiles, and tokens back into text.

Pure functions of a checkpoint's own files: no network, no model, no torch.
"""

from spyglass_server.prompt.prompt_maker import Prompt, PromptMaker

__all__ = ["Prompt", "PromptMaker"]
