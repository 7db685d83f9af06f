"""Serve a model with KServe's SDK."""

import kserve
import served_model
from kserve import InferOutput, InferRequest, InferResponse

DATATYPES = ("INT64", "FP32")


class OnnxModel(kserve.Model):
    """The model for KServe."""

    def load(self) -> bool:
        self.session = served_model.open_session()
        self.ready = True
        return True

    def predict(
        self,
        request: InferRequest,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> InferResponse:
        arrays = self.session.run(served_model.OUTPUTS, {"image": request.inputs[0].as_numpy()})
        outputs = []
        for name, datatype, array in zip(served_model.OUTPUTS, DATATYPES, arrays):
            output = InferOutput(name, list(array.shape), datatype)
            output.set_data_from_numpy(array, binary_data=request.use_binary_outputs)
            outputs.append(output)
        return InferResponse(request.id or "", self.name, outputs)


if __name__ == "__main__":
    model = OnnxModel(served_model.NAME)
    model.load()
    server = kserve.ModelServer(http_port=served_model.PORT, grpc_port=served_model.PORT + 1, access_log_format=None)
    server.start([model])
