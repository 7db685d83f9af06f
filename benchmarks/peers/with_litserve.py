"""Serve a model with LitServe, which does not implement the Open Inference Protocol: requests are parsed here."""

from typing import Any

import litserve
import numpy as np
import served_model
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Outputs = list[NDArray[Any]]


class OnnxModel(litserve.LitAPI):
    """The model for LitServe."""

    def setup(self, device: str) -> None:
        self.session = served_model.open_session()

    def decode_request(self, request: dict[str, Any]) -> Images:
        (image,) = request["inputs"]
        return np.array(image["data"], np.uint8).reshape(image["shape"])

    def batch(self, inputs: list[Images]) -> list[Images]:  # instead of stacking images of one request each
        return inputs

    def unbatch(self, outputs: list[Outputs]) -> list[Outputs]:
        return outputs

    def predict(self, batch: Images | list[Images]) -> Outputs | list[Outputs]:
        if not isinstance(batch, list):  # batching is off
            return self.session.run(served_model.OUTPUTS, {"image": batch})  # type: ignore[no-any-return]
        arrays = self.session.run(served_model.OUTPUTS, {"image": np.concatenate(batch)})
        ends = np.cumsum([len(images) for images in batch[:-1]])
        return [list(outputs) for outputs in zip(*(np.split(array, ends) for array in arrays))]

    def encode_response(self, arrays: Outputs) -> dict[str, Any]:
        return {name: array.tolist() for name, array in zip(served_model.OUTPUTS, arrays)}


if __name__ == "__main__":
    api = OnnxModel(
        api_path=f"/v2/models/{served_model.NAME}/infer",
        max_batch_size=served_model.MAX_BATCH_SIZE,
        batch_timeout=served_model.BATCH_SECONDS,
    )
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=served_model.PORT, generate_client_file=False, log_level="warning")
