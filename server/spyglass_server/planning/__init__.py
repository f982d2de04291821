"""Computes what a model needs and reaches on given hardware, for `spyglass plan` and for the engine's own sizes.

Plain arithmetic on a config.json and hardware figures: no torch, no device, no engine.
"""
