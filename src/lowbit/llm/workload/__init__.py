"""How fast, large and dear language models are for the user's requests: measured one process a candidate, in turns, and ranked."""
