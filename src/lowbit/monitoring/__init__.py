"""What is remembered of a served model: windows of its traffic, what they are compared with, and what people said about it."""
