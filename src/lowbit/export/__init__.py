"""A bundle leaves: for somebody else's server (servers/), or for another target, from the same table of parameters."""
