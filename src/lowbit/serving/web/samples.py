"""From the body of a prediction request to raw samples: images, text, rows of numbers. Pure, but for the pixels that Pillow decodes.

image/*                 one image
multipart/form-data     a file for each image; other fields are parameters
text/plain              one text
application/json        one sample, a list of samples, or {"samples": [...], "id": "...", "parameters": {...}}

A sample in JSON is base64 of an image (alone, as a data URL, or in {"image": ...}), a text, a row by column, or nested lists of numbers.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from email.parser import HeaderParser
from typing import Any

from lowbit.serving.protocol.refusals import Malformed, TooLarge, WrongKind
from lowbit.serving.protocol.requests import Parameter
from lowbit.serving.protocol.rest_codec import parameters_of, read_json

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Others that Pillow knows run programs or have no use here."""
MOST_PIXELS = 64_000_000
"""Of one image: a small file may claim to be a huge one."""
MOST_PIXELS_TOGETHER = 256_000_000
"""Of all images of a request."""
MOST_SAMPLES = 1024
MOST_FIELDS = 64
"""Of a form, beside its files."""
CHARSETS = ("utf-8", "us-ascii", "utf-16", "iso-8859-1")
"""Other codecs take long for some texts, or mean files and addresses."""
_TAKES = {
    "image": "images: image/png, image/jpeg, ..., multipart/form-data with files, or JSON with base64",
    "text": "text: text/plain or JSON",
    "array": "numbers: JSON with rows or nested lists",
}
_CODECS = {codecs.lookup(name).name for name in CHARSETS}
_DATA_URL = re.compile(r"data:[\w/+.-]*;base64,")
_ENVELOPE = {"samples", "id", "parameters"}


@dataclass(frozen=True)
class Samples:
    """What was sent.

    Attributes:
        values: Encoded images or nested lists; texts; rows.
        id: The client's own.
        parameters: As in `InferRequest`.
    """

    values: Sequence[Any]
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


def read(body: bytes, content_type: str, kind: str, axes: int) -> Samples:
    """Reads a body.

    Args:
        body: Whole.
        content_type: The header; empty is taken for JSON.
        kind: What the model takes: "image", "text" or "array".
        axes: Of one sample of the model's input, without the batch.

    Raises:
        WrongKind: a body of a kind that does not become what the model takes.
        Malformed: the body is not what it says, or holds no sample.
        TooLarge: too many samples.
    """
    message = Message()
    message["content-type"] = content_type or "application/json"
    media = message.get_content_type()
    if media == "application/json":
        found = _from_json(read_json(memoryview(body)), kind, axes)
    elif kind == "image" and media.startswith("image/"):
        found = Samples([body])
    elif kind == "image" and media == "multipart/form-data":
        found = _from_parts(body, message.get_boundary(""))
    elif kind == "text" and media == "text/plain":
        found = Samples([_text(body, message.get_content_charset("utf-8"))])
    else:
        raise WrongKind(f"The body is {media}; this model takes {_TAKES[kind]}.")
    if not found.values:
        raise Malformed("There is no sample in the body.")
    return found


def _few(samples: int) -> None:
    if samples > MOST_SAMPLES:
        raise TooLarge(f"The body has {samples:,} samples; {MOST_SAMPLES:,} are allowed.")


def _text(body: bytes, charset: str) -> str:
    try:
        known = codecs.lookup(charset).name in _CODECS
    except (LookupError, ValueError):  # the latter of a name with a zero in it
        known = False
    if not known:
        raise Malformed(f"The text is {charset[:40]!r}. Allowed: {', '.join(CHARSETS)}.")
    try:
        return body.decode(charset)
    except UnicodeError:
        raise Malformed(f"The text is not {charset}.") from None


def _from_json(document: Any, kind: str, axes: int) -> Samples:
    ident, parameters = "", {}
    if isinstance(document, dict) and "samples" in document and document.keys() <= _ENVELOPE:
        ident, parameters = document.get("id") or "", parameters_of(document)
        if not isinstance(ident, str):
            raise Malformed("The request's 'id' must be a string.")
        values = document["samples"]
        if not isinstance(values, list):
            raise Malformed("The request's 'samples' must be a list.")
    else:
        values = document if _is_list_of_samples(document, kind, axes) else [document]
    _few(len(values))
    return Samples([_image(value) for value in values] if kind == "image" else values, ident, parameters)


def _is_list_of_samples(document: Any, kind: str, axes: int) -> bool:
    """Whether a bare list is several samples rather than the numbers of one."""
    if not isinstance(document, list):
        return False
    if kind == "text" or not document or not isinstance(document[0], list | int | float):
        return True
    return kind == "array" and _depth(document) > axes


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list):
        depth, value = depth + 1, value[0] if value else None
    return depth


def _image(value: Any) -> Any:
    """An encoded image, or nested lists as they are."""
    if isinstance(value, Mapping) and len(value) == 1:
        (value,) = value.values()
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        raise Malformed('An image in JSON is base64, {"image": base64} or nested lists of numbers.')
    try:
        return base64.b64decode(_DATA_URL.sub("", value, count=1), validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("An image in JSON is not base64.") from None


def _from_parts(body: bytes, boundary: str) -> Samples:
    """The files of a form (RFC 7578); its other fields are parameters. The body is here whole: splitting it is all there is to do."""
    if not boundary:
        raise Malformed("The Content-Type multipart/form-data has no boundary.")
    edge = b"\r\n--" + boundary.encode("utf-8", "surrogateescape")
    if (number := body.count(edge)) > MOST_SAMPLES + MOST_FIELDS:  # before each costs a parser of headers
        raise TooLarge(f"The form has {number:,} parts; {MOST_SAMPLES:,} files and {MOST_FIELDS} other fields are allowed.")
    _, *parts = (b"\r\n" + body).split(edge)
    if not parts or not parts[-1].startswith(b"--"):
        raise Malformed("The form does not end with its boundary.")
    files: list[bytes] = []
    fields: dict[str, Parameter] = {}
    for part in parts[:-1]:
        head, blank, content = part.partition(b"\r\n\r\n")
        if not blank:
            raise Malformed("A part of the form has no end of its headers.")
        headers = HeaderParser().parsestr(head.decode("latin-1").lstrip())
        if headers.get_filename() is not None or headers.get_content_maintype() == "image":
            files.append(content)
        else:
            fields[str(headers.get_param("name", "", "content-disposition"))] = _text(content, "utf-8")
    _few(len(files))
    return Samples(files, str(fields.pop("id", "")), fields)


class Images(Sequence[Any]):
    """Encoded images, each decoded when it is asked for and forgotten behind that; nested lists stay.

    Attributes:
        sizes: Height and width of each image that was asked for; None for a nested list.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        """Decodes none yet."""
        self._values = values
        self._pixels = [0] * len(values)
        self.sizes: list[tuple[int, int] | None] = [None] * len(values)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, position: Any) -> Any:
        """One of them, by its position from 0.

        Raises:
            Malformed: not an image, broken, of a format that is not read, or of more pixels than allowed, alone or with those before.
        """
        value = self._values[position]
        if not isinstance(value, bytes):
            return value
        left = MOST_PIXELS_TOGETHER - sum(self._pixels) + self._pixels[position]
        image, self._pixels[position] = _decoded(value, position, left)
        self.sizes[position] = (image.height, image.width)
        return image


def _decoded(data: bytes, position: int, left: int) -> tuple[Any, int]:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        pixels = image.width * image.height
        if pixels <= min(MOST_PIXELS, left):
            image.load()
    except UnidentifiedImageError:
        raise Malformed(f"Image {position} is none of {', '.join(FORMATS)}.") from None
    except Image.DecompressionBombError:
        raise Malformed(f"Image {position} has too many pixels; {MOST_PIXELS:,} are allowed.") from None
    except Exception as error:  # decoders of broken files raise anything: OSError, SyntaxError, struct.error, ...
        raise Malformed(f"Image {position} cannot be read: {error}.") from None
    if pixels > MOST_PIXELS:
        raise Malformed(f"Image {position} has {pixels:,} pixels; {MOST_PIXELS:,} are allowed.")
    if pixels > left:
        raise Malformed(f"The images have more than {MOST_PIXELS_TOGETHER:,} pixels together.")
    return image, pixels
