"""The cnn behind LitServe, which has no such protocol of its own."""

import cnn
import litserve
import numpy as np


class Cnn(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.session = cnn.session()

    def decode_request(self, request: dict) -> np.ndarray:
        (image,) = request["inputs"]
        return np.array(image["data"], np.uint8).reshape(image["shape"])

    def predict(self, images: np.ndarray) -> list[np.ndarray]:
        return self.session.run(cnn.OUTPUTS, {"image": images})

    def encode_response(self, arrays: list[np.ndarray]) -> dict:
        return {name: array.tolist() for name, array in zip(cnn.OUTPUTS, arrays)}


if __name__ == "__main__":
    server = litserve.LitServer(Cnn(api_path=f"/v2/models/{cnn.NAME}/infer"), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=cnn.port(), generate_client_file=False, log_level="warning")
