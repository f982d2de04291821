"""The engine on CPUs: sequences attend in groups, by PyTorch's operations."""
