"""HTTP: sockets, the protocol over REST, predictions from raw samples, pages."""
