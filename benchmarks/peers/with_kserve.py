"""Serve the cnn with KServe's SDK."""

import cnn
import kserve
from kserve import InferOutput, InferRequest, InferResponse

DATATYPES = ("INT64", "FP32")


class Cnn(kserve.Model):
    """The cnn for KServe."""

    def load(self) -> bool:
        self.session = cnn.open_session()
        self.ready = True
        return True

    def predict(
        self,
        request: InferRequest,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> InferResponse:
        arrays = self.session.run(cnn.OUTPUTS, {"image": request.inputs[0].as_numpy()})
        binary = bool((request.parameters or {}).get("binary_data_output"))
        outputs = []
        for name, datatype, array in zip(cnn.OUTPUTS, DATATYPES, arrays):
            output = InferOutput(name, list(array.shape), datatype)
            output.set_data_from_numpy(array, binary_data=binary)
            outputs.append(output)
        return InferResponse(request.id or "", self.name, outputs)


if __name__ == "__main__":
    model = Cnn(cnn.NAME)
    model.load()
    kserve.ModelServer(http_port=cnn.port_argument(), enable_grpc=False, access_log_format=None).start([model])
