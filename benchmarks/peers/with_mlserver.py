"""Serve a model with MLServer."""

import asyncio

import served_model
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """The model for MLServer."""

    async def load(self) -> bool:
        self.session = served_model.open_session()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        arrays = self.session.run(served_model.OUTPUTS, {"image": NumpyCodec.decode_input(payload.inputs[0])})
        outputs = [NumpyCodec.encode_output(name, array) for name, array in zip(served_model.OUTPUTS, arrays)]
        return InferenceResponse(model_name=self.name, outputs=outputs)


async def main() -> None:
    single_process = {"parallel_workers": 0, "metrics_endpoint": None, "debug": False}
    port = served_model.PORT
    server = MLServer(Settings(host="127.0.0.1", http_port=port, grpc_port=port + 1, **single_process))
    model = ModelSettings(
        name=served_model.NAME,
        implementation=OnnxModel,
        max_batch_size=served_model.MAX_BATCH_SIZE,
        max_batch_time=served_model.BATCH_SECONDS,
    )
    await server.start([model])


if __name__ == "__main__":
    asyncio.run(main())
