"""Read a file that a client uploads as a form, as `curl -F` and browsers do."""

import logging

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from serving.errors import RequestError
from serving.limits import MAX_FORM_FIELDS

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # its warnings quote the client
FORM = "multipart/form-data"


def read_upload(body: bytes, content_type: str) -> bytes:
    """Return the one file in a form's body; a body of another type is the file itself. Raises RequestError."""
    kind, options = parse_options_header(content_type)
    if kind.decode("latin-1") != FORM:
        return body
    contents: list[bytes] = []
    fields: list[Field] = []

    def count_field(field: Field) -> None:
        fields.append(field)
        if len(fields) > MAX_FORM_FIELDS:
            raise RequestError(f"body: expected a form with at most {MAX_FORM_FIELDS} fields, got more", 413)

    def read_file(file: File) -> None:
        if contents:
            raise RequestError("body: expected a form with one file, got several", 400)
        file.file_object.seek(0)
        contents.append(file.file_object.read())

    in_memory = {"MAX_MEMORY_FILE_SIZE": len(body)}
    try:
        parser = FormParser(FORM, count_field, read_file, boundary=options.get(b"boundary"), config=in_memory)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(f"body: expected a form in the format {FORM}, got: {error}", 400) from error
    if not contents:
        raise RequestError("body: expected a form with one file, got none", 400)
    return contents[0]
