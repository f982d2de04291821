"""What runs in the engine process, except the arithmetic, which is in `runtime/`."""
