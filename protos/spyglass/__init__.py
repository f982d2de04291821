"""The protocol of Spyglass."""
