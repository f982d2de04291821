"""Between protobuf messages and the server's own words: what comes in is validated, what goes out is made."""
