"""Structured output: from a JSON schema, a regular expression, a list of choices or a grammar to a grammar that the
engine enforces token by token.
"""
