"""The application without the project's own HTTP layer: under Starlette's client, as under any ASGI server."""

import gzip
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from serving.app import create_app
from serving.bodies import Bodies
from serving.limits import Limits
from serving.repository import Repository
from serving.tracing import traced
from stages import artifacts
from tests.conftest import PROJECT
from tests.test_serving import inference_request, random_images


@pytest.fixture
def app(models_folder: Path) -> Iterator[ASGIApp]:
    with ThreadPoolExecutor(1) as executor:
        repository = Repository(models_folder / artifacts.MODEL_REPOSITORY, executor)
        repository.start(["*"])
        yield create_app(repository, executor, Bodies(Limits()))


def test_the_application_runs_under_another_server(app):
    content = inference_request(random_images(2))
    content["inputs"][0]["shape"] = [2, 1, 28, 28]
    with TestClient(app) as client:
        answer = client.post("/v2/models/cnn/infer", json=content)
        assert (answer.status_code, answer.json()["outputs"][0]["shape"]) == (200, [2, 1])
        assert answer.headers["Content-Encoding"] == "gzip"  # httpx accepts it
        assert client.get("/v2/models/cnn").json()["name"] == "cnn"
        assert client.post("/digits", content=b"x").status_code == 415
        body = gzip.compress(b"{}")
        assert (
            client.post("/v2/repository/index", content=body, headers={"Content-Encoding": "gzip"}).status_code == 200
        )


def test_the_application_needs_no_particular_server():
    code = "import sys, serving.app; print(*sys.modules)"
    assert "uvicorn" not in subprocess.check_output([sys.executable, "-c", code], cwd=PROJECT, text=True).split()


def test_every_request_is_a_span(app):
    exporter = InMemorySpanExporter()
    with TestClient(traced(app, SimpleSpanProcessor(exporter))) as client:
        client.get("/v2/models/cnn", headers={"traceparent": f"00-{1:032x}-{2:016x}-01"})
        client.post("/v2/models/nothing/infer")
    first, second = exporter.get_finished_spans()
    assert first.context.trace_id == 1
    assert [span.attributes["http.status_code"] for span in (first, second)] == [200, 404]
    assert [span.attributes["http.method"] for span in (first, second)] == ["GET", "POST"]
    assert first.resource.attributes["service.name"] == "mnist-pipeline"
