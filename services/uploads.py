"""Multipart forms read as a stream: small fields into memory, the one file to disk, nothing left behind.

The file goes to an *unnamed* temporary file, which the kernel frees when its last handle is closed, so
that not even a killed process leaves one lying about.

Built on python-multipart's push parser (the one under Starlette's ``request.form()``, which can neither be
told where to spool nor to bound the file).
"""

import contextlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from fastervlm_video.errors import InvalidRequestError, PayloadTooLargeError, UnsupportedMediaError
from services.threads import finish_in_thread, write_to_disk

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks  # exists for type checkers only

__all__ = ["FILE_FIELD", "ParsedForm", "SpooledFile", "parse_multipart"]

FILE_FIELD = "file"
"""Name of the form's only file part."""

MAX_FIELDS = 32
MAX_FIELD_BYTES = 64 * 1024
_MAX_NAME_CHARS = 64
_WRITE_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """An uploaded file, on disk.

    Attributes:
        file: open for reading and writing, at position 0; closed with the form it came in.
        filename: as the client named it; not to be used as a path.
        size_bytes: its length.
    """

    file: BinaryIO
    filename: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ParsedForm:
    """A multipart form.

    Attributes:
        fields: text of each field by name, decoded as UTF-8.
        file: the part named ``file``, if there is one.
    """

    fields: dict[str, str]
    file: SpooledFile | None


@asynccontextmanager
async def parse_multipart(
    request: Request,
    *,
    directory: Path,
    max_file_bytes: int,
    max_fields: int = MAX_FIELDS,
    max_field_bytes: int = MAX_FIELD_BYTES,
) -> AsyncIterator[ParsedForm]:
    """Read the request's multipart body; the file lives as long as the ``async with`` block.

    Args:
        request: its body must not have been read.
        directory: an existing folder for the temporary file.
        max_file_bytes: largest file.
        max_fields: most text fields.
        max_field_bytes: longest text field, encoded.

    Raises:
        UnsupportedMediaError: the body is not ``multipart/form-data``.
        InvalidRequestError: it is malformed or cut short, a part is repeated, a file part is not named
            ``file``, or there are too many or too long fields.
        PayloadTooLargeError: the file is larger than ``max_file_bytes``.
    """
    with contextlib.ExitStack() as resources:
        form = _Form(directory, resources, max_file_bytes, max_fields, max_field_bytes)
        boundary = _boundary(request)
        try:
            parser = MultipartParser(boundary, form.callbacks())
            async for chunk in request.stream():
                parser.write(chunk)
                await form.flush(_WRITE_BYTES)
            parser.finalize()
        except FormParserError as exc:
            raise InvalidRequestError(f"the multipart body is malformed: {exc}") from exc
        except ClientDisconnect as exc:
            raise InvalidRequestError("the connection was closed before the request body was complete") from exc
        if not form.ended:
            raise InvalidRequestError("the multipart body ends before its closing boundary; send all of it")
        yield await form.result()


def _boundary(request: Request) -> bytes:
    content_type = request.headers.get("content-type", "")
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise UnsupportedMediaError(f"expected a multipart/form-data body, got {content_type[:100]!r}")
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise InvalidRequestError("the Content-Type header of a multipart body must name its boundary")
    return boundary


@dataclass(slots=True)
class _Part:
    name: str = ""
    filename: str | None = None
    data: bytearray = field(default_factory=bytearray)


class _Form:
    """What the parser's callbacks build up. They are called by ``parser.write`` and do no input or output."""

    def __init__(
        self,
        directory: Path,
        resources: contextlib.ExitStack,
        max_file_bytes: int,
        max_fields: int,
        max_field_bytes: int,
    ) -> None:
        self._directory, self._resources = directory, resources
        self._max_file_bytes, self._max_fields, self._max_field_bytes = max_file_bytes, max_fields, max_field_bytes
        self._fields: dict[str, str] = {}
        self._part = _Part()
        self._header_name, self._header_value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._file: BinaryIO | None = None
        self._filename: str | None = None
        self._pending = bytearray()
        self._file_bytes = 0
        self.ended = False

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def _on_part_begin(self) -> None:
        self._part = _Part()
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers_finished(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition"))
        if disposition != b"form-data" or b"name" not in options:
            raise InvalidRequestError("each part of the form must have a Content-Disposition with a name")
        name = _text(options[b"name"], "a part's name")
        if len(name) > _MAX_NAME_CHARS:
            raise InvalidRequestError(f"the names of form fields may have at most {_MAX_NAME_CHARS} characters")
        filename = options.get(b"filename")
        self._part.name = name
        if filename is not None:
            self._begin_file(name, filename.decode("utf-8", "replace"))
        else:
            self._begin_field(name)

    def _begin_file(self, name: str, filename: str) -> None:
        if name != FILE_FIELD:
            raise InvalidRequestError(f"the file part of the form must be named {FILE_FIELD!r}, got {name!r}")
        if self._filename is not None or FILE_FIELD in self._fields:
            raise InvalidRequestError(f"send one part named {FILE_FIELD!r}, got several")
        self._part.filename = self._filename = filename

    def _begin_field(self, name: str) -> None:
        if name in self._fields or (name == FILE_FIELD and self._filename is not None):
            raise InvalidRequestError(f"the form field {name!r} is sent more than once")
        if len(self._fields) >= self._max_fields:
            raise InvalidRequestError(f"the form may have at most {self._max_fields} fields")
        self._fields[name] = ""

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.filename is not None:
            self._file_bytes += end - start
            if self._file_bytes > self._max_file_bytes:
                raise PayloadTooLargeError(f"a file may have at most {self._max_file_bytes} bytes, got more")
            self._pending += memoryview(data)[start:end]
            return
        self._part.data += memoryview(data)[start:end]
        if len(self._part.data) > self._max_field_bytes:
            raise InvalidRequestError(
                f"the form field {self._part.name!r} may have at most {self._max_field_bytes} bytes"
            )

    def _on_part_end(self) -> None:
        if self._part.filename is None:
            self._fields[self._part.name] = _text(self._part.data, f"the form field {self._part.name!r}")

    def _on_end(self) -> None:
        self.ended = True

    async def flush(self, threshold_bytes: int = 0) -> None:
        """Write to disk what has gathered, if it is more than ``threshold_bytes``."""
        if len(self._pending) > threshold_bytes:
            data, self._pending = self._pending, bytearray()
            await finish_in_thread(self._write, data)

    def _write(self, data: bytearray) -> None:
        write_to_disk(self._open(), data)

    def _open(self) -> BinaryIO:
        if self._file is None:
            file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 (entered in the next line)
            self._file = self._resources.enter_context(file)
        return self._file

    async def result(self) -> ParsedForm:
        await self.flush()
        if self._filename is None or (not self._filename and not self._file_bytes):
            return ParsedForm(self._fields, None)  # browsers send an unnamed, empty part where no file was chosen
        file = self._open()
        file.seek(0)
        return ParsedForm(self._fields, SpooledFile(file, self._filename, self._file_bytes))


def _text(data: bytes | bytearray, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidRequestError(f"{what} must be UTF-8 text, got {bytes(data[:40])!r}") from exc
