"""What is loaded, and how requests are run together."""
