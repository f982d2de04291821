"""The exam: two hands that draw, and the judge. Knows nothing of learning."""
