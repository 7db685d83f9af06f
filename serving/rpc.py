"""The Open Inference Protocol over gRPC, with the same queues, limits and errors as over HTTP."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import perf_counter, perf_counter_ns
from typing import Any

import grpc
from google.protobuf import json_format
from grpc import StatusCode
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving import inference, protocol
from serving.batching import Batcher
from serving.bodies import Bodies
from serving.calls import CallLimits, Recorder, error_text, status_code
from serving.errors import RequestError, StartError
from serving.inference import InferenceRequest
from serving.limits import HANDSHAKE_SECONDS, MAX_CALLS, MAX_TENSORS
from serving.models import Model
from serving.repository import Repository
from serving.tensors import Array, Arrays, TensorSpec, array_from_bytes, array_from_values, array_to_bytes

SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
CONTENTS = {  # field of InferTensorContents that holds each datatype; none holds FP16
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
HEALTH_SECONDS = 0.2  # until clients who watch the health hear of a change


@asynccontextmanager
async def serve(
    repository: Repository,
    bodies: Bodies,
    host: str,
    port: int,
    credentials: grpc.ServerCredentials | None,
    log_requests: bool,
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Serve a repository over gRPC, with TLS if there are credentials.

    `bodies` are those of HTTP requests, with which the messages share a limit on memory. Yields a function that ends
    idle streams and waits for the requests under way. Port 0 is any free one. Raises StartError if the server cannot
    listen.
    """
    limits = bodies.limits
    options = {
        "grpc.max_allowed_incoming_connections": limits.max_connections,
        "grpc.max_concurrent_streams": MAX_CALLS,
        "grpc.server_handshake_timeout_ms": 1000 * HANDSHAKE_SECONDS,
        "grpc.max_connection_idle_ms": 1000 * limits.timeout_seconds,
        "grpc.keepalive_time_ms": 1000 * limits.timeout_seconds,
        "grpc.http2.ping_timeout_ms": 1000 * limits.timeout_seconds,
        "grpc.max_receive_message_length": limits.max_body_bytes,
        "grpc.max_send_message_length": -1,
        "grpc.http2.bdp_probe": 0,  # else, clients may send large parts of messages that nobody awaits
        "grpc.so_reuseport": 0,  # else, two servers share a port without an error
    }
    recorder = Recorder(repository.entries, log_requests)
    calls = CallLimits(bodies, recorder)
    server = grpc.aio.server(
        interceptors=[calls], options=[*options.items()], maximum_concurrent_rpcs=limits.max_connections
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(InferenceService(repository, recorder), server)
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(repository), server)
    address = f"{host}:{port}"
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartError(f"gRPC: expected a free address, got {address}: {error}") from error
    await server.start()
    print(f"serving: gRPC on {host}:{port}", file=sys.stderr, flush=True)

    async def stop() -> None:
        calls.stop()
        await server.stop(limits.timeout_seconds)

    try:
        yield stop
    finally:
        await stop()


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # has no type hints
    """gRPC's standard health service. That of grpc_health lets a client who does not read hold up all others."""

    def __init__(self, repository: Repository):
        """Tell the state of a repository."""
        self.repository = repository

    def status(self, service: str) -> Any:
        """Return the status of a service; the empty name stands for all."""
        if service not in ("", SERVICE):
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if self.repository.is_ready() else HealthCheckResponse.NOT_SERVING

    async def Check(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        status = self.status(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            raise RequestError(f"service: expected {SERVICE} or none, got {request.service!r}", 404)
        return HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext) -> None:
        last = None
        while True:
            if (status := self.status(request.service)) != last:
                await context.write(HealthCheckResponse(status=status))
            last = status
            await asyncio.sleep(HEALTH_SECONDS)


class InferenceService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # has no type hints
    """Triton's service; the methods for shared memory, traces and logs are not implemented."""

    def __init__(self, repository: Repository, recorder: Recorder):
        """Serve the models of a repository, and record the requests of streams."""
        self.repository = repository
        self.recorder = recorder

    async def ServerLive(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return service_pb2.ServerReadyResponse(ready=self.repository.is_ready())

    async def ServerMetadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return service_pb2.ServerMetadataResponse(**protocol.SERVER_METADATA)

    async def ModelReady(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            self.repository.find(request.name, request.version)
        except RequestError:
            return service_pb2.ModelReadyResponse(ready=False)
        return service_pb2.ModelReadyResponse(ready=True)

    async def ModelMetadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        batchers = self.repository.find_versions(request.name, request.version)
        metadata = protocol.model_metadata([batcher.model for batcher in batchers])
        return json_format.ParseDict(metadata, service_pb2.ModelMetadataResponse())

    async def ModelConfig(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return service_pb2.ModelConfigResponse(config=self.repository.find(request.name, request.version).model.config)

    async def ModelStatistics(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        batchers = self.repository.find_all(request.name, request.version)
        statistics = {"model_stats": [batcher.statistics.to_dict() for batcher in batchers]}
        return json_format.ParseDict(statistics, service_pb2.ModelStatisticsResponse())

    async def RepositoryIndex(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        models = [*self.repository.index(request.ready)]
        return json_format.ParseDict({"models": models}, service_pb2.RepositoryIndexResponse())

    async def RepositoryModelLoad(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        await self.repository.load(request.model_name, request.parameters)
        return service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        await self.repository.unload(request.model_name)
        return service_pb2.RepositoryModelUnloadResponse()

    async def ModelInfer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return await self.infer(request)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> Any:
        async for request in requests:
            yield await self.stream_response(request, context)

    async def stream_response(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        """Return the response, or the error, to a ModelInferRequest of a stream."""
        start, code = perf_counter(), StatusCode.UNKNOWN
        try:
            response = service_pb2.ModelStreamInferResponse(infer_response=await self.infer(request))
            code = StatusCode.OK
        except RequestError as error:
            code = status_code(error)
            # As in Triton, the stream goes on, and the response says to which request it belongs.
            failed = service_pb2.ModelInferResponse(id=request.id)
            response = service_pb2.ModelStreamInferResponse(error_message=error_text(error), infer_response=failed)
        finally:
            self.recorder.record(f"/{SERVICE}/ModelStreamInfer", request, context, code, start)
        return response

    async def infer(self, request: Any) -> Any:
        """Return the response to a ModelInferRequest. Raises RequestError if it is invalid."""
        batcher = self.repository.find(request.model_name, request.model_version)
        start = perf_counter_ns()
        parsed = parse_request(request, batcher.model)
        batcher.statistics.parse.add(perf_counter_ns() - start)
        outputs = await inference.infer(batcher, parsed)
        start = perf_counter_ns()
        response = create_response(batcher, parsed, outputs)
        batcher.statistics.serialize.add(perf_counter_ns() - start)
        return response


def parse_request(request: Any, model: Model) -> InferenceRequest:
    """Parse a ModelInferRequest. Raises RequestError if it does not match the model's inputs and outputs."""
    if len(request.inputs) + len(request.outputs) > MAX_TENSORS:
        raise RequestError(f"request: expected at most {MAX_TENSORS} inputs and outputs, got more")
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise RequestError(f"raw_input_contents: expected one per input, {len(request.inputs)}, got {len(raw)}")
    inputs: Arrays = {}
    for index, tensor in enumerate(request.inputs):
        spec = inference.find_input(model, tensor.name, inputs)
        shape = [*tensor.shape]
        inference.check_input(model, spec, tensor.datatype, shape, parse_parameters(tensor))
        if raw:
            inputs[spec.name] = array_from_bytes(memoryview(raw[index]), shape, spec)
        else:
            inputs[spec.name] = array_from_contents(tensor.contents, shape, spec)
    model.check_inputs(inputs)
    requested = [(tensor.name, parse_parameters(tensor)) for tensor in request.outputs]
    return InferenceRequest(request.id, inputs, inference.requested_outputs(model, requested, binary=True))


def parse_parameters(tensor: Any) -> dict[str, object]:
    """Return the parameters of an input or requested output."""
    return {
        name: getattr(value, choice)
        for name, value in tensor.parameters.items()
        if (choice := value.WhichOneof("parameter_choice"))
    }


def array_from_contents(contents: Any, shape: list[int], spec: TensorSpec) -> Array:
    """Return the array of an InferTensorContents. Raises RequestError if it holds other values."""
    field = CONTENTS.get(spec.datatype)
    found = [descriptor.name for descriptor, _ in contents.ListFields()]
    if field is None or found not in ([], [field]):
        expected = field or "raw_input_contents"
        raise RequestError(f"{spec.name}: expected {expected}, got {' and '.join(found) or 'none'}")
    return array_from_values([*getattr(contents, field)], shape, spec)


def create_response(batcher: Batcher, request: InferenceRequest, outputs: dict[str, tuple[str, Array]]) -> Any:
    """Return the ModelInferResponse with these outputs, whose data are raw."""
    model = batcher.model
    response = service_pb2.ModelInferResponse(model_name=model.name, model_version=model.version, id=request.id)
    for name, (datatype, array) in outputs.items():
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(array_to_bytes(array))
    return response
