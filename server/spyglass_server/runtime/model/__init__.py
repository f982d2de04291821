"""Mllama: the vision encoder, and the text model that attends to its output.

Tests compare it with Meta's reference (llama-models, llama3/multimodal/model.py).
"""
