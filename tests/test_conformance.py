"""The server against a real Triton on the same model repository, call by call, over HTTP and gRPC."""

import gzip
import http.client
import json
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from onnx import TensorProto
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor

from stages import artifacts
from tests.conftest import Server, serving
from tests.foreign_models import save_model
from tests.test_serving import binary_request, inference_request, random_images
from tests.triton.server import triton

INVALID = "Triton answers requests that it cannot parse with 500, this server with 400: the client is to blame"
STRICT = "this server refuses values that the datatype lacks, and nesting that contradicts the shape"
HEALTH = "this server answers as the Open Inference Protocol says, Triton with an empty response"
SHARED_MEMORY = "this server has no shared memory"
LENIENT = "this server is lenient, as HTTP asks for content codings, and as a client would expect"

MODEL_KINDS = {
    "fp32": ("FP32", TensorProto.FLOAT),
    "fp64": ("FP64", TensorProto.DOUBLE),
    "fp16": ("FP16", TensorProto.FLOAT16),
    "int8": ("INT8", TensorProto.INT8),
    "uint64": ("UINT64", TensorProto.UINT64),
    "bool": ("BOOL", TensorProto.BOOL),
    "bytes": ("STRING", TensorProto.STRING),
}


class Call(NamedTuple):
    """An HTTP request, and the reason why the servers answer it differently, if they do."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = {}
    difference: str = ""


def config(kind: str, dims: str, batch: int = 8, more: str = "") -> str:
    tensors = "".join(
        f'{name} {{ name: "{tensor}", data_type: TYPE_{kind}, dims: {dims} }}\n'
        for name, tensor in {"input": "x", "output": "result"}.items()
    )
    return f'backend: "onnxruntime"\nmax_batch_size: {batch}\n{tensors}{more}'


@pytest.fixture(scope="module")
def repository(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models, and one of each datatype that returns its input."""
    folder = tmp_path_factory.mktemp("conformance") / "repository"
    shutil.copytree(models_folder / artifacts.MODEL_REPOSITORY, folder)
    for name, (kind, onnx_kind) in MODEL_KINDS.items():
        save_model(folder / name / "1" / "model.onnx", "Identity", "x", ["b", 2], onnx_kind, config(kind, "[ 2 ]"))
    save_model(folder / "variable" / "1" / "model.onnx", "Identity", "x", ["b", "n"], config=config("FP32", "[ -1 ]"))
    save_model(folder / "fixed" / "1" / "model.onnx", "Identity", "x", [2, 2], config=config("FP32", "[ 2, 2 ]", 0))
    for version, operator in {1: "Identity", 2: "Neg", 10: "Abs"}.items():
        file = folder / "versions" / str(version) / "model.onnx"
        save_model(file, operator, "x", ["b", 2], config=config("FP32", "[ 2 ]", 8, "version_policy { all {} }"))
    broken = folder / "broken" / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"x")
    (folder / "broken" / "config.pbtxt").write_text(config("FP32", "[ 2 ]"))
    return folder


@pytest.fixture(scope="module")
def servers(repository: Path) -> Iterator[tuple[Server, Server]]:
    """Triton and this server, both in the explicit model control mode, in which all models can be loaded at start."""
    explicit = ("--model-control-mode", "explicit", "--load-model", "*")
    with (
        triton(repository, "--model-control-mode=explicit", "--load-model=*", "--strict-readiness=false") as reference,
        serving(repository, *explicit) as ours,
    ):
        yield reference, ours


def infer(inputs: Any, model: str = "cnn", difference: str = "", headers: dict[str, str] | None = None, **fields: Any):
    body = json.dumps({"inputs": inputs, **fields}).encode()
    return Call("POST", f"/v2/models/{model}/infer", body, headers or {}, difference)


def image(count: int = 1, **fields: Any) -> dict[str, Any]:
    return inference_request(random_images(count))["inputs"][0] | fields


def without(field: str) -> dict[str, Any]:
    return {key: value for key, value in image().items() if key != field}


def output(name: str = "probabilities", **parameters: Any) -> dict[str, Any]:
    return {"name": name, "parameters": parameters}


def binary(tail: bytes, difference: str = "", headers: dict[str, str] | None = None, **fields: Any) -> Call:
    """Return a request whose image is the binary data after the JSON."""
    tensor = {"name": "image", "shape": [1, 1, 28, 28], "datatype": "UINT8"}
    tensor |= {"parameters": {"binary_data_size": 784}} | fields
    body, length = binary_request({"inputs": [tensor]}, tail)
    return Call("POST", "/v2/models/cnn/infer", body, length | (headers or {}), difference)


def values(model: str, data: list[Any], shape: list[int], difference: str = "", **fields: Any) -> Call:
    kind = MODEL_KINDS.get(model, ("FP32",))[0]
    datatype = "BYTES" if kind == "STRING" else kind
    return infer([{"name": "x", "shape": shape, "datatype": datatype, "data": data}], model, difference, **fields)


def raw_values(model: str, datatype: str, shape: list[int], tail: bytes, difference: str = "", **fields: Any) -> Call:
    x = {"name": "x", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(tail)}}
    body, headers = binary_request({"inputs": [x], **fields}, tail)
    return Call("POST", f"/v2/models/{model}/infer", body, headers, difference)


def compressed(encoding: str, compress: Callable[[bytes], bytes], difference: str = "") -> Call:
    return Call(*infer([image()])[:2], compress(infer([image()]).body), {"Content-Encoding": encoding}, difference)


NAN, INFINITY = float("nan"), float("inf")
CALLS = {
    **{
        f"GET {path}": Call("GET", path)
        for path in (
            "/v2/models/cnn",
            "/v2/models/cnn/versions/1",
            "/v2/models/cnn/versions/2",
            "/v2/models/nothing",
            "/v2/models/versions",
            "/v2/models/versions/versions/2",
            "/v2/models/fixed",
            "/v2/models/broken",
            "/v2/models/nothing/ready",
            "/v2/models/cnn/versions/2/ready",
            "/v2/models/broken/ready",
            "/v2/models/nothing/config",
            "/v2/models/broken/config",
            "/v2/models/nothing/stats",
            "/v2/models/cnn/versions/2/stats",
            "/v2/models/cnn/versions/x",
            "/unknown",
            "/v2/models",
            "/v2/models/cnn/",
            "/v2/models/cnn/infer",
            "/v2/repository/index",
            "/v2/health/live/",
        )
    },
    **{
        f"GET {path}": Call("GET", path, difference=HEALTH)
        for path in (
            "/v2/health/live",
            "/v2/health/ready",
            "/v2/models/cnn/ready",
            "/v2/models/versions/versions/10/ready",
        )
    },
    "POST where only GET is allowed": Call("POST", "/v2/models/cnn"),
    "shared memory": Call("GET", "/v2/systemsharedmemory/status", difference=SHARED_MEMORY),
    "load a broken model": Call("POST", "/v2/repository/models/broken/load"),
    "load an unknown model": Call("POST", "/v2/repository/models/nothing/load", difference=INVALID),
    "load a model again": Call("POST", "/v2/repository/models/fnn/load"),
    "unload an unknown model": Call("POST", "/v2/repository/models/nothing/unload"),
    "index of ready models": Call("POST", "/v2/repository/index", b'{"ready": true}'),
    "index with invalid JSON": Call("POST", "/v2/repository/index", b"{", difference=INVALID),
    # Inputs
    "one image": infer([image()]),
    "many images": infer([image(40)]),
    "version": infer([image()], "cnn/versions/1"),
    "unknown version": infer([image()], "cnn/versions/2"),
    "unknown model": infer([image()], "nothing"),
    "broken model": infer([image()], "broken"),
    "id": infer([image()], id="42"),
    "id that is a number": infer([image()], difference=INVALID, id=42),
    "unknown parameters": infer([image()], parameters={"x": 1, "y": "z", "timeout": 5, "sequence_id": 3}),
    "parameter that is an object": infer([image()], parameters={"x": {}}),
    "nested data": infer([image(2, data=random_images(2).tolist())]),
    "data nested otherwise": infer([image(data=[[0] * 392] * 2)], difference=STRICT),
    "ragged data": infer([image(data=[[0] * 700, [0] * 84])], difference=STRICT),
    "too few values": infer([image(data=[0] * 783)], difference=INVALID),
    "too many values": infer([image(data=[0] * 785)], difference=INVALID),
    "values above the datatype": infer([image(data=[256] * 784)], difference=STRICT),
    "negative values": infer([image(data=[-1] * 784)], difference=INVALID),
    "fractions": infer([image(data=[0.5] * 784)], difference=INVALID),
    "strings instead of numbers": infer([image(data=["1"] * 784)], difference=INVALID),
    "nulls": infer([image(data=[None] * 784)], difference=INVALID),
    "data that are a string": infer([image(data="x")], difference=INVALID),
    "other datatype": infer([image(datatype="FP32")]),
    "unknown datatype": infer([image(datatype="X")]),
    "datatype that is a number": infer([image(datatype=1)], difference=INVALID),
    "shape without batch": infer([image(shape=[1, 28, 28])]),
    "shape with other lengths": infer([image(shape=[1, 28, 1, 28])]),
    "flat shape": infer([image(shape=[784])]),
    "empty shape": infer([image(shape=[])]),
    "batch size 0": infer([image(shape=[0, 1, 28, 28], data=[])]),
    "batch size above the maximum": infer([image(1025)]),
    "negative batch size": infer([image(shape=[-1, 1, 28, 28])], difference=INVALID),
    "huge batch size": infer([image(shape=[2**62, 1, 28, 28])]),
    "fraction in the shape": infer([image(shape=[1.0, 1, 28, 28])], difference=INVALID),
    "shape that is null": infer([image(shape=None)], difference=INVALID),
    **{f"without {field}": infer([without(field)], difference=INVALID) for field in ("name", "datatype", "shape")},
    "without data": infer([without("data")]),
    "unknown input": infer([image(name="x")]),
    "input twice": infer([image(), image()]),
    "additional input": infer([image(), image(name="x")]),
    "no inputs": infer([]),
    "inputs that are null": infer(None, difference=INVALID),
    "JSON without inputs": Call("POST", "/v2/models/cnn/infer", b"{}", difference=INVALID),
    "array instead of object": Call("POST", "/v2/models/cnn/infer", b"[]", difference=INVALID),
    "invalid JSON": Call("POST", "/v2/models/cnn/infer", b"{", difference=INVALID),
    "deeply nested JSON": Call("POST", "/v2/models/cnn/infer", b'{"inputs":' + b"[" * 5000, difference=INVALID),
    "data after the JSON": Call("POST", "/v2/models/cnn/infer", infer([image()]).body + b"x", difference=INVALID),
    "empty body": Call("POST", "/v2/models/cnn/infer"),
    "input in shared memory": infer(
        [without("data") | {"parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 784}}],
        difference=SHARED_MEMORY,
    ),
    # Outputs
    "one output": infer([image()], outputs=[{"name": "label"}]),
    "outputs in another order": infer([image()], outputs=[{"name": "probabilities"}, {"name": "label"}]),
    "output twice": infer([image()], outputs=[{"name": "label"}, {"name": "label"}]),
    "unknown output": infer([image()], outputs=[{"name": "x"}]),
    "no outputs": infer([image()], outputs=[]),
    "outputs that are strings": infer([image()], difference=INVALID, outputs=["label"]),
    "binary outputs": infer([image(3)], parameters={"binary_data_output": True}),
    "one binary output": infer([image(3)], outputs=[output("label", binary_data=True), output()]),
    "binary_data that is a number": infer([image()], difference=INVALID, outputs=[output("label", binary_data=1)]),
    "classes": infer([image(3)], outputs=[output(classification=3)]),
    "binary classes": infer([image(3)], outputs=[output(classification=2, binary_data=True)]),
    "more classes than there are": infer([image()], outputs=[output(classification=99)]),
    "no classes": infer([image()], outputs=[output(classification=0)]),
    "classes of the labels": infer([image(2)], outputs=[output("label", classification=1)]),
    "classes and values": infer([image()], outputs=[output(classification=2), output()]),
    "negative number of classes": infer([image()], difference=INVALID, outputs=[output(classification=-1)]),
    "output in shared memory": infer(
        [image()],
        difference=SHARED_MEMORY,
        outputs=[output("label", shared_memory_region="r", shared_memory_byte_size=8)],
    ),
    # Binary data
    "binary": binary(bytes(784)),
    "binary_data_size too small": binary(bytes(783), parameters={"binary_data_size": 783}),
    "binary data too short": binary(bytes(783)),
    "binary data too long": binary(bytes(785)),
    "binary_data_size negative": binary(bytes(784), INVALID, parameters={"binary_data_size": -1}),
    "binary data and data": binary(bytes(784), data=[0] * 784),
    "JSON length negative": binary(bytes(784), headers={"Inference-Header-Content-Length": "-1"}),
    "JSON length not a number": binary(bytes(784), headers={"Inference-Header-Content-Length": "x"}),
    "JSON length too large": binary(bytes(784), headers={"Inference-Header-Content-Length": "100000"}),
    "JSON length too small": binary(bytes(784), INVALID, headers={"Inference-Header-Content-Length": "10"}),
    "raw": Call("POST", "/v2/models/cnn/infer", bytes(784), {"Inference-Header-Content-Length": "0"}),
    "raw, too long": Call("POST", "/v2/models/cnn/infer", bytes(785), {"Inference-Header-Content-Length": "0"}),
    "raw, of variable length": Call(
        "POST", "/v2/models/variable/infer", bytes(12), {"Inference-Header-Content-Length": "0"}
    ),
    # Datatypes
    "floats": values("fp32", [1.5, -0.1], [1, 2]),
    "NaN and infinity": values("variable", [1.5, NAN, INFINITY, -INFINITY], [1, 4]),
    "double NaN": values("fp64", [NAN, 1e300], [1, 2]),
    "float above the datatype": values("fp32", [1e39, 0], [1, 2], STRICT),
    "boolean as float": values("fp32", [True, 0], [1, 2], INVALID),
    "variable length": values("variable", [1, 2, 3], [1, 3]),
    "variable length 0": values("variable", [], [1, 0]),
    "no batches": values("fixed", [1, 2, 3, 4], [2, 2]),
    "no batches, other shape": values("fixed", [1, 2, 3, 4], [4]),
    "latest of three versions": values("versions", [-1, 1], [1, 2]),
    **{
        f"version {number} of three": values(f"versions/versions/{number}", [-1, 1], [1, 2])
        for number in (1, 2, 10, 11)
    },
    "int8": values("int8", [127, -128], [1, 2]),
    "int8 above the datatype": values("int8", [128, 0], [1, 2], STRICT),
    "uint64": values("uint64", [2**64 - 1, 0], [1, 2]),
    "uint64 above the datatype": values("uint64", [2**64, 0], [1, 2], INVALID),
    "booleans": values("bool", [True, False], [1, 2]),
    "numbers as booleans": values("bool", [1, 0], [1, 2], INVALID),
    "strings": values("bytes", ["", "a\xdf"], [1, 2]),
    "numbers as strings": values("bytes", [1, 2], [1, 2], INVALID),
    "binary strings": raw_values(
        "bytes", "BYTES", [1, 2], b"\1\0\0\0a\2\0\0\0bb", parameters={"binary_data_output": True}
    ),
    "too few binary strings": raw_values("bytes", "BYTES", [1, 2], b"\1\0\0\0a"),
    "too many binary strings": raw_values("bytes", "BYTES", [1, 2], b"\1\0\0\0a" * 3),
    "incomplete binary string": raw_values("bytes", "BYTES", [1, 2], b"\1\0\0\0a\x09\0\0\0b"),
    "half precision in JSON": values("fp16", [1, 2], [1, 2], LENIENT),
    "half precision": raw_values("fp16", "FP16", [1, 2], bytes(4), parameters={"binary_data_output": True}),
    # Compression
    "gzip": compressed("gzip", gzip.compress),
    "deflate": compressed("deflate", zlib.compress),
    "identity": compressed("identity", bytes),
    "content coding in upper case": compressed("GZIP", gzip.compress, LENIENT),
    "unknown content coding": compressed("br", bytes, "this server answers 415, Triton 501"),
    "data that are not gzip": compressed("gzip", bytes),
    "two content codings": compressed("gzip, deflate", bytes, "this server answers 415, Triton 501"),
    "gzip accepted": infer([image()], headers={"Accept-Encoding": "gzip"}),
    "deflate accepted": infer([image()], headers={"Accept-Encoding": "deflate"}),
    "both accepted": infer([image()], headers={"Accept-Encoding": "gzip, deflate"}),
    "other coding accepted": infer([image()], headers={"Accept-Encoding": "br"}),
}


def answer(server: Server, call: Call) -> dict[str, Any]:
    """Return status and content of the answer to a call, in a form that can be compared."""
    client = http.client.HTTPConnection(server.address, timeout=30)
    client.request(call.method, call.path, call.body or None, call.headers)
    response = client.getresponse()
    content = response.read()
    encoding = response.getheader("Content-Encoding")
    content = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[encoding](content)
    found: dict[str, Any] = {"status": response.status, "encoding": encoding}
    if response.status >= 400:
        return found | {"error": bool(json.loads(content)["error"])}
    length = int(response.getheader("Inference-Header-Content-Length", len(content)))
    message = json.loads(content[:length]) if content else None
    tail = content[length:]
    for tensor in message.get("outputs", []) if isinstance(message, dict) else []:
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is not None:
            tensor["data"], tail = decode(tensor["datatype"], tail[:size]), tail[size:]
        elif tensor["datatype"] == "BYTES":
            tensor["data"] = [comparable(element) for element in tensor["data"]]
    if isinstance(message, list):  # the reasons are each server's own
        message = [entry | {"reason": True} if "reason" in entry else entry for entry in message]
    return found | {"message": message, "rest": tail}


def decode(datatype: str, data: bytes) -> list[Any]:
    """Return the values of a tensor's bytes, in a form that can be compared."""
    if datatype == "BYTES":
        return [comparable(element.decode()) for element in deserialize_bytes_tensor(data)]
    dtype = {"FP32": np.float32, "FP16": np.float16, "INT64": np.int64}[datatype]
    return np.frombuffer(data, dtype).tolist()


def comparable(text: str) -> list[Any]:
    """Split VALUE:INDEX:LABEL, so that values can be compared with a tolerance."""
    value, *rest = text.split(":")
    return [float(value), *rest] if rest else [text]


def assert_equal_unless(difference: str, found: Any, expected: Any) -> None:
    """Compare two answers, which must differ if there is a reason."""
    if difference:
        assert found != expected, "this difference is gone: remove its reason"
    else:
        assert_equal(found, expected)


def assert_equal(found: Any, expected: Any) -> None:
    """Compare JSON, floats with a tolerance: the servers run different releases of ONNX Runtime."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert_equal(one, other)
    else:
        assert type(found) is type(expected)
        assert found == (pytest.approx(expected, abs=2e-6, nan_ok=True) if isinstance(expected, float) else expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_an_http_call_is_answered_as_by_triton_or_differs_for_a_reason(servers, name):
    expected, found = (answer(server, CALLS[name]) for server in servers)
    assert_equal_unless(CALLS[name].difference, found, expected)
    if CALLS[name].difference:
        assert found["status"] < 500 or CALLS[name].difference == SHARED_MEMORY


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "fp32", "bytes", "variable", "fixed", "versions"])
def test_configurations_are_completed_as_by_triton(servers, model):
    expected, found = (json.loads(server.ask(f"/v2/models/{model}/config")[1]) for server in servers)
    del expected["optimization"]  # of Triton's own backends
    expected["runtime"] = ""  # of the backend that stands in for ONNX Runtime's
    assert found == expected


def count(statistics: Any) -> Any:
    """Replace times in statistics by whether there are any."""
    if isinstance(statistics, list):
        return [count(each) for each in statistics]
    if not isinstance(statistics, dict):
        return statistics
    return {key: value > 0 if key in ("ns", "last_inference") else count(value) for key, value in statistics.items()}


@pytest.mark.slow
def test_statistics_count_as_in_triton(servers):
    for size in (1, 1, 3, 0):
        for server in servers:
            answer(server, values("bool", [True] * 2 * size, [size, 2]))
    time.sleep(1)  # Triton may count a call after its answer
    expected, found = (count(json.loads(server.ask("/v2/models/bool/stats")[1])) for server in servers)
    (expected,), (found,) = expected["model_stats"], found["model_stats"]
    assert found["inference_stats"].keys() == expected["inference_stats"].keys()
    for ignored in ("success", "compute_input", "compute_output"):  # may take less than a clock tick
        for statistics in (expected, found):
            statistics["inference_stats"][ignored].pop("ns")
            for batch in statistics["batch_stats"]:
                batch.get(ignored, {}).pop("ns", None)
    assert found == expected


class Rpc(NamedTuple):
    """A gRPC call, and the reason why the servers answer it differently, if they do."""

    method: str
    request: Any
    difference: str = ""


def infer_rpc(difference: str = "", **fields: Any) -> Rpc:
    """Return an inference call, with these fields instead of those of a valid one."""
    batch = random_images(2)
    tensor = {"name": "image", "datatype": "UINT8", "shape": batch.shape}
    tensor = {key: fields.pop(key, value) for key, value in tensor.items()} | fields.pop("tensor", {})
    request = {"model_name": "cnn", "inputs": [tensor], "raw_input_contents": [batch.tobytes()]} | fields
    return Rpc("ModelInfer", service_pb2.ModelInferRequest(**request), difference)


def parameters(**values: int) -> dict[str, Any]:
    return {name: service_pb2.InferParameter(int64_param=value) for name, value in values.items()}


RPCS = {
    "live": Rpc("ServerLive", service_pb2.ServerLiveRequest()),
    "ready": Rpc("ServerReady", service_pb2.ServerReadyRequest()),
    **{f"{name} ready": Rpc("ModelReady", service_pb2.ModelReadyRequest(name=name)) for name in ("cnn", "broken", "x")},
    **{
        f"metadata of {name}": Rpc("ModelMetadata", service_pb2.ModelMetadataRequest(name=name))
        for name in ("cnn", "versions", "x")
    },
    "metadata of a version": Rpc("ModelMetadata", service_pb2.ModelMetadataRequest(name="versions", version="2")),
    "configuration of an unknown model": Rpc("ModelConfig", service_pb2.ModelConfigRequest(name="x")),
    "statistics of an unknown model": Rpc(
        "ModelStatistics", service_pb2.ModelStatisticsRequest(name="x"), "this server answers NOT_FOUND"
    ),
    "index of ready models": Rpc("RepositoryIndex", service_pb2.RepositoryIndexRequest(ready=True)),
    "load an unknown model": Rpc(
        "RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name="x"), INVALID
    ),
    "load a broken model": Rpc("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name="broken")),
    "infer": infer_rpc(id="42"),
    "infer with a version": infer_rpc(model_name="cnn", model_version="1"),
    "unknown version": infer_rpc(model_version="2"),
    "unknown model": infer_rpc(model_name="x"),
    "no model": infer_rpc(model_name=""),
    "metadata of no model": Rpc("ModelMetadata", service_pb2.ModelMetadataRequest()),
    "configuration of no model": Rpc("ModelConfig", service_pb2.ModelConfigRequest()),
    "no model ready": Rpc("ModelReady", service_pb2.ModelReadyRequest()),
    "broken model": infer_rpc(model_name="broken"),
    "unknown input": infer_rpc(name="x"),
    "other datatype": infer_rpc(datatype="FP32"),
    "other shape": infer_rpc(shape=[2, 784]),
    "negative shape": infer_rpc(shape=[-2, 1, 28, 28]),
    "batch size above the maximum": infer_rpc(shape=[1025, 1, 28, 28], raw_input_contents=[bytes(1025 * 784)]),
    "too few bytes": infer_rpc(raw_input_contents=[bytes(783)]),
    "too many raw contents": infer_rpc(
        "this server refuses data that no input takes", raw_input_contents=[bytes(1568), b""]
    ),
    "no inputs": infer_rpc(inputs=[], raw_input_contents=[]),
    "typed contents": infer_rpc(
        raw_input_contents=[], tensor={"contents": service_pb2.InferTensorContents(uint_contents=[7] * 1568)}
    ),
    "typed contents of another type": infer_rpc(
        raw_input_contents=[], tensor={"contents": service_pb2.InferTensorContents(fp32_contents=[7] * 1568)}
    ),
    "one output": infer_rpc(outputs=[{"name": "label"}]),
    "unknown output": infer_rpc(outputs=[{"name": "x"}]),
    "classes": infer_rpc(outputs=[{"name": "probabilities", "parameters": parameters(classification=3)}]),
    "shared memory": infer_rpc(
        raw_input_contents=[],
        tensor={"parameters": {"shared_memory_region": service_pb2.InferParameter(string_param="r")}},
    ),
    "shared memory status": Rpc(
        "SystemSharedMemoryStatus", service_pb2.SystemSharedMemoryStatusRequest(), SHARED_MEMORY
    ),
}


def answer_rpc(server: Server, call: Rpc) -> Any:
    """Return the status code and the response to a call, in a form that can be compared."""
    with grpc.insecure_channel(server.grpc_address) as channel:
        try:
            response = getattr(service_pb2_grpc.GRPCInferenceServiceStub(channel), call.method)(call.request)
        except grpc.RpcError as error:
            return error.code().name
    message = json_format.MessageToDict(response, preserving_proto_field_name=True)
    if message.pop("raw_output_contents", None):
        for tensor, data in zip(message["outputs"], response.raw_output_contents, strict=True):
            tensor["data"] = decode(tensor["datatype"], data)
    return message


@pytest.mark.slow
@pytest.mark.parametrize("name", RPCS)
def test_a_grpc_call_is_answered_as_by_triton_or_differs_for_a_reason(servers, name):
    expected, found = (answer_rpc(server, RPCS[name]) for server in servers)
    assert_equal_unless(RPCS[name].difference, found, expected)
