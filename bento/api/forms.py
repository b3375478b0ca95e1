"""Forms (multipart/form-data) whose files are kept in memory.

python-multipart parses them. Starlette's own forms, of which whole scenes are read, make a temporary file of
each part, which takes three times as long as to parse it.
"""

from dataclasses import dataclass
from io import BytesIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import ImmutableMultiDict
from starlette.exceptions import HTTPException
from starlette.requests import Request

_MAX_FIELD_BYTES = 8192  # of a field that is not a file


@dataclass(frozen=True, slots=True)
class FormFile:
    """A file of a form: its name, which may be empty, and its bytes."""

    name: str
    content: bytes


Form = ImmutableMultiDict[str, str | FormFile]


async def read_form(body: Request, max_files: int, max_fields: int) -> Form:
    """Read the fields and files of a form in their order, as the body arrives.

    Raises:
        HTTPException: the body is no valid form, or has more files or fields, or a longer field.
    """
    _, options = parse_options_header(body.headers.get("content-type"))
    if not options.get(b"boundary"):
        raise HTTPException(400, "a form without a boundary in its Content-Type; let the client set it")
    collector = _Collector(max_files, max_fields)
    try:
        parser = collector.parser(options[b"boundary"])
        async for chunk in body.stream():
            parser.write(chunk)
    except FormParserError as error:
        raise HTTPException(400, f"a broken form: {error}") from error
    if not collector.complete:
        raise HTTPException(400, "a form that breaks off before its last boundary; send it again")
    return ImmutableMultiDict(collector.items)


class _Collector:
    """Collects the parts of a form, called by a parser.

    Attributes:
        items: name and value of each part that has ended.
        complete: whether the form has ended.
    """

    def __init__(self, max_files: int, max_fields: int) -> None:
        self._max_files, self._max_fields = max_files, max_fields
        self.items: list[tuple[str, str | FormFile]] = []
        self.complete = False
        self._header = self._value = self._disposition = b""
        self._name = ""
        self._file_name: str | None = None  # None: the part is a field
        self._content = BytesIO()
        self._files = self._fields = 0

    def parser(self, boundary: bytes) -> MultipartParser:
        """Return a parser that calls this collector."""
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def _on_part_begin(self) -> None:
        self._disposition = b""
        self._content = BytesIO()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise HTTPException(400, "a part of the form without a name; curl -F NAME=@FILE gives it one")
        self._name = _text(options[b"name"])
        self._file_name = _text(options[b"filename"]) if b"filename" in options else None
        if self._file_name is None:
            self._fields += 1
        else:
            self._files += 1
        if self._files > self._max_files:
            most = f"{self._max_files} files" if self._max_files > 1 else "one file"
            raise HTTPException(413, f"more than {most}; send them in several requests")
        if self._fields > self._max_fields:
            raise HTTPException(400, f"more than {self._max_fields} fields that are not files")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file_name is None and self._content.tell() + end - start > _MAX_FIELD_BYTES:
            raise HTTPException(400, f"the field {self._name!r} has more than {_MAX_FIELD_BYTES:,} bytes")
        self._content.write(memoryview(data)[start:end])

    def _on_part_end(self) -> None:
        content = self._content.getvalue()
        value = _text(content) if self._file_name is None else FormFile(self._file_name, content)
        self.items.append((self._name, value))

    def _on_end(self) -> None:
        self.complete = True


def _text(value: bytes) -> str:
    """Return a name or a field as text: UTF-8, or Latin-1 where it is not."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
