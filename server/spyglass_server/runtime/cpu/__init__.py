"""The engine on CPUs: sequences attend in groups, with PyTorch's operations."""
