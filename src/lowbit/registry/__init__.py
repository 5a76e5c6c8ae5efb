"""Versions of models with their lineage, aliases that move by compare-and-swap, and an audit log that shows every change."""
