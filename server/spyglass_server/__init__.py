"""The gRPC server of Spyglass: trust, bookkeeping, prompts, and the engine process that runs the model."""
