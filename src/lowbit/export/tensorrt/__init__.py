"""NVIDIA TensorRT: explicit quantization on symmetric grids."""
