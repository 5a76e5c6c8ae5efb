"""Load for servers, ours or others'."""
