"""lowbit: the smallest, fastest version of a trained model that is still right."""

__version__ = "0.1.0"
