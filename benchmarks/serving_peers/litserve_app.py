"""LitServe: python litserve_app.py MODEL PORT MAX_BATCH WINDOW_S."""  # annotations must not be strings here: FastAPI reads them

import base64
import sys
from typing import Any

import litserve as ls
import numpy as np
from artifact import Artifact, row

MODEL, PORT, MAX_BATCH, WINDOW_S = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])


class Api(ls.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002
        self.model = Artifact(MODEL)

    def decode_request(self, request):  # an annotation would tell FastAPI to expect something else
        return row(base64.b64decode(request["x"]))

    def batch(self, inputs: list[Any]) -> Any:
        return np.stack(inputs)

    def predict(self, x: Any) -> Any:
        return self.model(x)

    def unbatch(self, output: Any) -> Any:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"y": base64.b64encode(output.tobytes()).decode()}


if __name__ == "__main__":
    api = Api(max_batch_size=MAX_BATCH, batch_timeout=WINDOW_S)
    ls.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60).run(
        host="127.0.0.1", port=PORT, num_api_servers=1, generate_client_file=False, log_level="warning"
    )
