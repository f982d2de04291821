"""Pictures of the training: scenes by lot, and how they are painted."""
