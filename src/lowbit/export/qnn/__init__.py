"""Qualcomm QNN: the Hexagon processor (HTP) of Snapdragon chips, through onnxruntime."""
