"""Train a small regression network on California housing and export it to ONNX.

scikit-learn trains it, onnx writes it; no PyTorch needed:

    python examples/california/train.py --data ../shared/data/tabular/california_housing.csv --out build/california
    lowbit optimize build/california/mlp.onnx --data build/california/test.csv \\
        --preprocess build/california/preprocess.yaml --max-drop 1%

The CSV's last column, `split`, says which rows train. The network works on standardised features and a standardised
target; `preprocess.yaml` keeps these numbers, so that raw rows can be fed.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper
from sklearn.metrics import r2_score, root_mean_squared_error
from sklearn.neural_network import MLPRegressor

TARGET = "median_house_value"


def read(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Columns without the split, rows float64 [n, columns], and which of them are for testing [n]."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    split = rows[0].index("split")
    columns = [name for index, name in enumerate(rows[0]) if index != split]
    values = np.array([[float(cell) for index, cell in enumerate(row) if index != split] for row in rows[1:]])
    return columns, values, np.array([row[split] == "test" for row in rows[1:]])


def to_onnx(network: MLPRegressor, features: int) -> onnx.ModelProto:
    """A chain of Gemm and Relu: rows [batch, features] -> values [batch, 1]."""
    nodes, weights, name = [], [], "features"
    for index, (kernel, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        last = index == len(network.coefs_) - 1
        weights += [
            numpy_helper.from_array(kernel.astype(np.float32), f"w{index}"),
            numpy_helper.from_array(bias.astype(np.float32), f"b{index}"),
        ]
        out = "value" if last else f"hidden{index}"
        nodes.append(helper.make_node("Gemm", [name, f"w{index}", f"b{index}"], [out], name=f"layer{index}"))
        name = out
        if not last:
            nodes.append(helper.make_node("Relu", [out], [f"{out}_relu"], name=f"relu{index}"))
            name = f"{out}_relu"
    graph = helper.make_graph(
        nodes,
        "california",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", features])],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["batch", 1])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    columns, rows, test = read(options.data)
    features = [name for name in columns if name != TARGET]
    x, y = rows[:, [columns.index(name) for name in features]], rows[:, columns.index(TARGET)]
    mean, std, target_mean, target_std = x[~test].mean(0), x[~test].std(0), y[~test].mean(), y[~test].std()
    network = MLPRegressor(
        hidden_layer_sizes=(64, 64), alpha=1e-4, batch_size=128, early_stopping=True, max_iter=200, n_iter_no_change=15, random_state=0
    )
    network.fit((x[~test] - mean) / std, (y[~test] - target_mean) / target_std)
    predicted = network.predict((x[test] - mean) / std) * target_std + target_mean
    print(f"test R² {r2_score(y[test], predicted):.3f}, RMSE {root_mean_squared_error(y[test], predicted):,.0f} on {test.sum():,} rows")

    options.out.mkdir(parents=True, exist_ok=True)
    model = to_onnx(network, len(features))
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, options.out / "mlp.onnx")
    with (options.out / "test.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*features, TARGET])
        writer.writerows([*map(float, row), float(value)] for row, value in zip(x[test], y[test], strict=True))
    steps = {
        "kind": "array",
        "columns": features,
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "target": TARGET,
        "target_mean": float(target_mean),
        "target_std": float(target_std),
    }
    (options.out / "preprocess.yaml").write_text(yaml.safe_dump(steps, sort_keys=False))


if __name__ == "__main__":
    main()
