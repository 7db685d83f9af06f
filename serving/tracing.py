"""OpenTelemetry traces of HTTP requests, by the extra `trace`."""

from starlette.types import ASGIApp

from serving.errors import StartError

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
except ImportError as error:
    raise StartError(f"--trace: expected the extra `trace` to be installed, got: {error}") from error


def traced(app: ASGIApp, processor: SpanProcessor) -> ASGIApp:
    """Return an application that passes a span of each request to a processor."""
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "mnist-pipeline"}))
    provider.add_span_processor(processor)
    # Without spans of ASGI's messages, which say no more than the request's
    return OpenTelemetryMiddleware(app, tracer_provider=provider, exclude_spans=["receive", "send"])


def export(app: ASGIApp) -> ASGIApp:
    """Return an application whose spans are sent over OTLP, as OpenTelemetry's environment variables say."""
    return traced(app, BatchSpanProcessor(OTLPSpanExporter()))
