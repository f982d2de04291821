"""`spyglass chat`: asks from the command line, once or in a conversation."""
