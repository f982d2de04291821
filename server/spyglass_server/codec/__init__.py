"""Converts between protobuf messages and the server's own types; incoming messages are validated."""
