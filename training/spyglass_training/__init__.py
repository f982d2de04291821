"""Trains the embedded model's eyes: pictures, questions, encoder, cross-attention. Not part of the product."""
