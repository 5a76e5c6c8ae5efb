"""Training on the graph that ships: the torch twin of an ONNX file."""
