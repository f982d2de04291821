"""`spyglass serve`: runs a server and a bridge as child processes.

Imports the settings of both, and nothing else of either.
"""
