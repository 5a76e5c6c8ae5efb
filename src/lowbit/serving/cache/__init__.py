"""Answers that are kept: the very same tensors, and, where asked for, images that are nearly the same."""
