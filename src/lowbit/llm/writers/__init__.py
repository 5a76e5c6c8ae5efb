"""What writes a decoder for an engine: one format a file, each with `FORMAT`, `check` and `write`."""
