"""Serving from a registry: following its aliases, splitting traffic between two versions, and counting what both do."""
