"""A bundle leaves for other targets, and every artifact is tried as far as this machine can."""
