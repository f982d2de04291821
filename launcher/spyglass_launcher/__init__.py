"""`spyglass serve`: runs a server and a bridge as child processes.

Imports only the settings of both.
"""
