"""Serve the cnn with MLServer."""

import asyncio

import cnn
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Cnn(MLModel):
    """The cnn for MLServer."""

    async def load(self) -> bool:
        self.session = cnn.open_session()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        arrays = self.session.run(cnn.OUTPUTS, {"image": NumpyCodec.decode_input(payload.inputs[0])})
        outputs = [NumpyCodec.encode_output(name, array) for name, array in zip(cnn.OUTPUTS, arrays)]
        return InferenceResponse(model_name=self.name, outputs=outputs)


async def main() -> None:
    port = cnn.port_argument()
    single_process = {"parallel_workers": 0, "metrics_endpoint": None, "debug": False}
    server = MLServer(Settings(host="127.0.0.1", http_port=port, grpc_port=port + 1, **single_process))
    await server.start([ModelSettings(name=cnn.NAME, implementation=Cnn)])


if __name__ == "__main__":
    asyncio.run(main())
