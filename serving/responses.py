"""Responses in JSON."""

from typing import Any

import orjson
from starlette.responses import Response

from serving.limits import MAX_ERROR_CHARACTERS


def json_response(content: Any, status: int = 200) -> Response:
    """Return a response with this JSON."""
    return Response(orjson.dumps(content), status, media_type="application/json")


def error_response(status: int, error: str) -> Response:
    """Return a response with an error, whose text may be long because it quotes the request."""
    return json_response({"error": error[:MAX_ERROR_CHARACTERS]}, status)
