"""How the levels of a block's linear layers are chosen, one method a file."""
