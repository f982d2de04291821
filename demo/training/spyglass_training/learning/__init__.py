"""Learning: data, losses, optimizers and the two phases."""
