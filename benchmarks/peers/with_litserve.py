"""Serve the cnn with LitServe, which does not implement the Open Inference Protocol: requests are parsed here."""

from typing import Any

import cnn
import litserve
import numpy as np
from numpy.typing import NDArray


class Cnn(litserve.LitAPI):
    """The cnn for LitServe."""

    def setup(self, device: str) -> None:
        self.session = cnn.open_session()

    def decode_request(self, request: dict[str, Any]) -> NDArray[np.uint8]:
        (image,) = request["inputs"]
        return np.array(image["data"], np.uint8).reshape(image["shape"])

    def predict(self, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        arrays: list[NDArray[Any]] = self.session.run(cnn.OUTPUTS, {"image": images})
        return arrays

    def encode_response(self, arrays: list[NDArray[Any]]) -> dict[str, Any]:
        return {name: array.tolist() for name, array in zip(cnn.OUTPUTS, arrays)}


if __name__ == "__main__":
    api = Cnn(api_path=f"/v2/models/{cnn.NAME}/infer")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=cnn.port_argument(), generate_client_file=False, log_level="warning")
