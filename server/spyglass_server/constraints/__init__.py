"""Structured output: turns a JSON schema, a regular expression, a list of choices or a grammar into a grammar that the
engine enforces token by token.
"""
