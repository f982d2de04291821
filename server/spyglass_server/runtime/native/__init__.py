"""The text model's operations on CPUs, in C: compiled at the first start if there is a compiler, and kept."""
