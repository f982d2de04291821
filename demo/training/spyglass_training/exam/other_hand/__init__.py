"""A second hand, which draws pictures for the exam only: nothing is ever trained on them.

It shares the world's vocabulary with the first hand and nothing else: its own values for the colours,
its own shapes, fonts, rasteriser and wordings.
"""

from spyglass_training.exam.other_hand.questions import example

__all__ = ["example"]
