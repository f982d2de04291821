"""Generated messages and stubs of spyglass.v1; never edited."""
