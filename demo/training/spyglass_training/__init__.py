"""Trains the demo model's vision adapter: images, questions, encoder, cross-attention. Not part of any wheel."""
