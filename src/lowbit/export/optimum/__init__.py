"""Hugging Face Optimum."""
