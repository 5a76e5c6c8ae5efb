"""LiteRT: the integer program as a .tflite file, and the ways in which it runs here."""
