"""The Open Inference Protocol as data: requests, refusals, and their form in bytes."""
