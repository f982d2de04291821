"""Mllama: the vision encoder, and the text model that looks at its output.

Meta's reference (llama-models, llama3/multimodal/model.py) is the truth that tests compare with.
"""
