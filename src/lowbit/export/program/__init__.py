"""A network on integers that belongs to no target: what LiteRT's writer, the C generator and their checkers start from."""
