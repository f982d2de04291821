"""What a model needs and reaches on given hardware, computed: the command `spyglass plan`, and the engine's own sizes.

Plain arithmetic on a config.json and figures of hardware: no torch, no device, no engine.
"""
