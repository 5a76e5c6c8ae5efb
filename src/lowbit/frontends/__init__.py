"""Models that are no ONNX files yet: PyTorch modules, exported programs, Hugging Face folders.

bring       which kind a model is, and everything that follows from it
builder     `pkg.mod:build` → a module
weights     a checkpoint → the module's parameters, without running what is in the file
examples    inputs to trace a module with, from what the user gave or from the data
export      a module → an ONNX file
trouble     why an export failed, in words
parity      the exported file against the module, on real samples
huggingface a transformers folder → a module, its preprocessing, its task
"""
