"""onnxruntime in browsers."""
