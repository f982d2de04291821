"""The arithmetic of the engine: the Mllama model, its caches and the sampler.

The only part of the server that imports torch; it runs in the engine process.
"""
