"""LiteRT the other way, for what our integer program lacks: Google's converter and quantizer, on ranges that they measure themselves."""
