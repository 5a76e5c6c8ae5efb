"""ONNX operators in plain torch; importing the package fills the table."""

from lowbit.train.operators import arithmetic, logic, normalization, pooling, products, recurrent, reductions, resize, shapes
from lowbit.train.operators.table import OPERATORS, Attributes, Operator

__all__ = [
    "OPERATORS",
    "Attributes",
    "Operator",
    "arithmetic",
    "logic",
    "normalization",
    "pooling",
    "products",
    "recurrent",
    "reductions",
    "resize",
    "shapes",
]
