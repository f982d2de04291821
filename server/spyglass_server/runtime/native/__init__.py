"""What the text model computes on CPUs, in C: compiled at the first start where there is a compiler, and kept."""
