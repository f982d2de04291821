"""Code that the server, the bridge and the client share besides the protocol; it imports none of them."""
