"""The parts of benchmarks/panel.py: subjects (models with data), producers (who quantizes), scoring, timing, tables."""
