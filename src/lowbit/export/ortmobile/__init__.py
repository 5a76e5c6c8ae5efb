"""onnxruntime on phones."""
