"""From a prepared model and calibration samples to the artifact of a recipe: calibrate, transform, find what is sensitive, quantize."""
