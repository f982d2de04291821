"""What the server, the bridge and the client share beside the protocol; it imports none of them."""
