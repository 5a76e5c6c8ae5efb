"""Edge TPU: LiteRT files under its constraints, and what its documentation says of them."""
