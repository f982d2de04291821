"""The protocol of Spyglass, and the names of its settings."""
