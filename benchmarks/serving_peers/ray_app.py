"""Ray Serve: python ray_app.py MODEL PORT MAX_BATCH WINDOW_S."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

MODEL, PORT, MAX_BATCH, WINDOW_S = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
HERE = str(Path(__file__).parent)


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
class Net:
    def __init__(self) -> None:
        sys.path.insert(0, HERE)
        from artifact import Artifact, row

        self.model, self.row = Artifact(MODEL), row

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WINDOW_S)
    async def together(self, rows: list[Any]) -> list[Any]:
        return list(self.model(np.stack(rows)))

    async def __call__(self, request: Request) -> Response:
        return Response((await self.together(self.row(await request.body()))).tobytes())


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, _node_ip_address="127.0.0.1", object_store_memory=200 << 20, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Net.bind(), route_prefix="/")
    print("ready", flush=True)
    while True:
        time.sleep(1)
