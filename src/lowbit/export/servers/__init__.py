"""A bundle leaves for somebody else's server: Triton's model repository, KServe's manifest."""
