"""Whole HTTP requests around hostile uploads, as bytes: forms, multipart bodies, queries and headers of all
kinds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from urllib.parse import quote_from_bytes

from hostile import arrays, tiffs
from hostile.expanding import draw_expanding

TEXTS = (
    b"", b"0", b"-1", b"nan", b"inf", b"1e400", b"0x10", b"B02,B03,B04", b"eurosat", b"rgb", b"l1c", b"_,_",
    b"B02,B02", b"L1C", b"L2A", b"l3", b"0.5", b"0.9", b"/etc/passwd", b"/vsicurl/http://127.0.0.1:9/x",
    b"http://127.0.0.1:9/x.tif", b"file:///etc/passwd", b"../../etc/passwd", b"%00", b"\x00", b"\xff\xfe",
    b"\xc3\x28", b"A" * 5000, b"; DROP TABLE", b"{{7*7}}", b"<script>alert(1)</script>", b"\r\nX-Injected: 1",
    b"\xe2\x80\xae", b"\xed\xa0\x80", b"9" * 400, b"1_000", b"\xd9\xa1",
)  # fmt: skip
NAMES = (
    b"bands", b"level", b"scale", b"offset", b"coverage", b"name", b"tiles", b"", b"__proto__", b"bands[]", b"\xff",
    b"a" * 3000,
)  # fmt: skip
KINDS = (
    b"image/tiff", b"application/octet-stream", b"application/x-npy", b"multipart/form-data", b"application/json",
    b"text/plain", b"application/vnd.bentoml+pickle", b"application/x-www-form-urlencoded", b"",
    b"image/tiff; charset=\xff", b"multipart/mixed",
)  # fmt: skip
CHARSETS = (
    b"utf-8", b"latin-1", b"base64", b"idna", b"punycode", b"undefined", b"unicode_escape", b"utf-7", b"utf-16",
    b"rot13", b"zip", b"\x01", b"mbcs", b"raw_unicode_escape",
)  # fmt: skip
PATHS = (
    b"/classify", b"/classify/", b"//classify", b"/classify%00", b"/CLASSIFY", b"/model", b"/metrics", b"/",
    b"/%2e%2e/etc/passwd", b"/livez", b"/tasks/1", b"/scene", b"/explain", b"/preview", b"/openapi.json", b"/no%ff",
    b"*",
)  # fmt: skip
BOUNDARIES = (
    b"", b"; boundary=", b"; boundary=" + b"y" * 5000, b"; boundary=\xff", b'; boundary="', b";" * 200,
)  # fmt: skip
FILE_NAMES = (
    b"a.tif", b"\\ud800", b"+2AA-", b"\xff\xff", b"\xd8\x00", b"xn--\xff", b"\\U00110000", b"a" * 3000,
)  # fmt: skip
METHODS = (
    b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"POST", b"BREW",
)  # fmt: skip
MAGICS = (
    b"", b"II*\0", b"MM\0*", b"II+\0", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"PK\x03\x04", b"%PDF-1.7",
    b"GIF89a", b"\x89HDF\r\n\x1a\n", b"CDF\x01", b"\0\0\0\x0cjP  \r\n\x87\n", b"SQLite format 3\0", b"<GDAL_WMS>",
    b"\x80\x04\x95", b"NITF02.10", b"GRIB", b"RIFF",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sent:
    """A request: its kind, its bytes, how many uploads are in it, and whether its connection is of use after
    it."""

    kind: str
    content: bytes
    uploads: int
    goes_on: bool = True


@dataclass(frozen=True, slots=True)
class Hostile:
    """Makes requests.

    Attributes:
        sound: TIFFs taken apart, to be mutated.
        plain: sound files, to lie among the others.
        canaries: what uploads name as other files: paths and URLs; none may ever be opened.
        seed: with a request's number, decides it.
    """

    sound: Sequence[tiffs.Tiff]
    plain: Sequence[bytes]
    canaries: Sequence[str]
    seed: int

    def request(self, index: int) -> Sent:
        """Return the `index`-th request."""
        random = Random(f"{self.seed}:{index}")  # noqa: S311 - to be repeated, not to be secret
        kinds, weights = zip(*_KINDS.items(), strict=True)
        (kind,) = random.choices(kinds, weights)
        return _MAKERS[kind](self, random)

    def file(self, random: Random) -> bytes:
        """Return a hostile file."""
        choice = random.random()
        if choice < 0.88:
            return tiffs.mutate(random.choice(self.sound), random, random.choice(self.canaries))
        if choice < 0.9:
            return draw_expanding(random)
        if choice < 0.95:
            return random.choice(other_formats(random.choice(self.canaries)))
        return random.choice(MAGICS) + random.randbytes(random.choice((0, 10, 1000)))


def other_formats(canary: str) -> list[bytes]:
    """Return files of other formats that name a file: GDAL has drivers that would open it."""
    path = canary.encode()
    return [
        b'<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="UInt16" '
        b'band="1"><SimpleSource>'
        b'<SourceFilename relativeToVRT="0">'
        + path
        + b"</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>",
        b'<GDAL_WMS><Service name="TMS"><ServerUrl>' + path + b"</ServerUrl></Service></GDAL_WMS>",
        b'<WMT_MS_Capabilities><!DOCTYPE x SYSTEM "' + path + b'">',
        b'{"type": "GDALG", "command_line": "gdal raster pipeline ! read ' + path + b'"}',
        path,
        b"GTIFF_DIR:1:" + path,
        b"/vsizip/" + path,
    ]


def post(path: bytes, kind: bytes, body: bytes, headers: bytes = b"") -> bytes:
    """Return the bytes of a POST."""
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b\r\n"
    return head % (path, kind, len(body), headers) + body


def part(name: bytes, content: bytes, filename: bytes | None = b"a.tif", headers: bytes = b"") -> bytes:
    """Return a part of a multipart body, without the boundary before it."""
    overrides = b"" if filename is None else b'; filename="%b"' % filename
    return b'Content-Disposition: form-data; name="%b"%b\r\n%b\r\n%b\r\n' % (
        name,
        overrides,
        headers,
        content,
    )


def multipart(parts: Sequence[bytes], mark: bytes = b"x", end: bytes = b"--\r\n") -> bytes:
    """Return a multipart body."""
    return b"".join(b"--%b\r\n%b" % (mark, one) for one in parts) + b"--" + mark + end


def _query(random: Random, likely: float = 0.5) -> bytes:
    if random.random() > likely:
        return random.choice(
            (b"", b"?bands=eurosat&level=L1C&offset=0", b"?bands=rgb&level=L2A&scale=0.0001&offset=0")
        )
    pairs = [
        (random.choice(NAMES[:6] if random.random() < 0.8 else NAMES), random.choice(TEXTS))
        for _ in range(random.choice((1, 1, 2, 8)))
    ]
    return b"?" + b"&".join(
        quote_from_bytes(name).encode() + b"=" + quote_from_bytes(text).encode() for name, text in pairs
    )


def _other_route(hostile: Hostile, random: Random) -> Sent:
    """A file for the routes that read it in other ways: as a scene, decimated to a picture, to be
    explained."""
    path = random.choice((b"/preview", b"/preview", b"/scene", b"/explain"))
    content = random.choice(hostile.plain) if random.random() < 0.1 else hostile.file(random)
    more = b"Accept: %b\r\n" % random.choice(
        (b"*/*", b"image/tiff", b"image/png", b"application/geo+json", b"\xff", b"a/b;q=x")
    )
    if random.random() < 0.8:
        return Sent(
            "scene, preview, explain", post(path + _query(random, 0.1), b"image/tiff", content, more), 1
        )
    body = multipart([part(b"scene" if path == b"/scene" else b"tiles", content, random.choice(TEXTS[:20]))])
    return Sent("scene, preview, explain", post(path, b"multipart/form-data; boundary=x", body, more), 1)


def _tiff(hostile: Hostile, random: Random) -> Sent:
    return Sent("TIFF", post(b"/classify" + _query(random, 0.1), b"image/tiff", hostile.file(random)), 1)


def _npy(hostile: Hostile, random: Random) -> Sent:
    kind = random.choice((b"application/octet-stream", b"application/x-npy"))
    return Sent("npy", post(b"/classify" + _query(random, 0.1), kind, arrays.mutate(random)), 1)


def _files(hostile: Hostile, random: Random) -> Sent:
    """Several files in a sound form; sound ones among them must not suffer."""
    count = random.choice((1, 2, 4, 8))
    files = [
        hostile.file(random) if random.random() < 0.9 else random.choice(hostile.plain) for _ in range(count)
    ]
    fields = [
        part(random.choice(NAMES[:5]), random.choice(TEXTS), None) for _ in range(random.choice((0, 0, 1)))
    ]
    body = multipart(
        [*fields, *(part(b"tiles", content, random.choice(TEXTS).replace(b"\r\n", b"")) for content in files)]
    )
    return Sent("TIFFs in a form", post(b"/classify", b"multipart/form-data; boundary=x", body), count)


def _form(hostile: Hostile, random: Random) -> Sent:
    """A form that is wrong itself."""
    file = part(b"tiles", random.choice(hostile.plain))
    mark, kind = b"x", b"multipart/form-data; boundary=x"
    choice = random.randrange(13)
    body = multipart([file])
    if choice == 0:
        kind = b"multipart/form-data" + random.choice(BOUNDARIES)
    elif choice == 1:
        body = multipart([part(b"tiles", b"x") for _ in range(random.choice((257, 1000, 10_000)))])
    elif choice == 2:
        body = multipart([part(b"level", b"L1C", None) for _ in range(random.choice((6, 10_000)))])
    elif choice == 3:
        lines = b"X-%d: y\r\n" % random.randrange(9) * random.choice((1, 7, 9, 5000))
        body = multipart([part(b"tiles", b"x", headers=lines)])
    elif choice == 4:
        body = multipart(
            [part(b"tiles", b"x", headers=b"X-Long: " + b"y" * random.choice((100, 5000, 300_000)) + b"\r\n")]
        )
    elif choice == 5:
        body = multipart([part(random.choice(NAMES), b"x", random.choice(TEXTS))])
    elif choice == 6:
        body = multipart(
            [
                b"\r\n",
                b"Content-Disposition: form-data\r\n\r\nx\r\n",
                b'Content-Disposition: attachment; filename="a"\r\n\r\nx\r\n',
            ][: random.choice((1, 3))]
        )
    elif choice == 7:
        inner = multipart([file], b"in")
        body = multipart(
            [part(b"tiles", inner, None, b"Content-Type: multipart/mixed; boundary=in\r\n")]
            * random.choice((1, 30))
        )
    elif choice == 8:
        kind += b"; charset=" + random.choice(CHARSETS)
        name = random.choice(FILE_NAMES)
        body = multipart([part(b"tiles", random.choice(hostile.plain), name), part(b"level", name, None)])
    elif choice == 9:
        body = body[: random.randrange(len(body))] + random.choice((b"", b"--x--", b"\r\n--x", b"\0" * 50))
    elif choice == 10:
        body = random.randbytes(20) + body + random.randbytes(random.choice((20, 20_000)))
    elif choice == 11:
        changed = bytearray(body)
        for _ in range(random.choice((1, 5))):
            changed[random.randrange(min(len(changed), 200))] = random.randrange(256)
        body = bytes(changed)
    else:
        body = multipart(
            [part(b"tiles", random.choice(TEXTS), None), file][: random.choice((1, 2))],
            mark,
            random.choice((b"--", b"--\r\n", b"", b"\r\n")),
        )
    return Sent("form", post(b"/classify", kind, body), 1)


def _fields(hostile: Hostile, random: Random) -> Sent:
    """A sound file with hostile things said of it, as a form's fields or in the query."""
    if random.random() < 0.5:
        return Sent(
            "parameters",
            post(b"/classify" + _query(random, 1), b"image/tiff", random.choice(hostile.plain)),
            1,
        )
    overrides = [
        part(random.choice(NAMES[:5] if random.random() < 0.8 else NAMES), random.choice(TEXTS), None)
        for _ in range(random.choice((1, 2, 6)))
    ]
    body = multipart([part(b"tiles", random.choice(hostile.plain)), *overrides])
    return Sent("parameters", post(b"/classify", b"multipart/form-data; boundary=x", body), 1)


def _body(hostile: Hostile, random: Random) -> Sent:
    """A body of another type than it says."""
    body = random.choice(
        (
            random.choice(MAGICS) + random.randbytes(50),
            hostile.file(random),
            random.choice(hostile.plain),
            b"",
            arrays.sound(),
            random.choice(TEXTS),
        )
    )
    return Sent("type", post(b"/classify", random.choice(KINDS), body), 1)


def _headers(hostile: Hostile, random: Random) -> Sent:
    """A sound body behind hostile headers; most make the connection useless."""
    name = random.choice(
        (
            b"Tilewise-Key",
            b"X-Request-ID",
            b"Accept",
            b"Host",
            b"Origin",
            b"Authorization",
            b"X-API-Key",
            b"Cookie",
            b"X-Forwarded-For",
            b"traceparent",
            b"Expect",
            b"Tilewise-Version",
            b"If-None-Match",
            b"Range",
            b"Prefer",
            b"Upgrade",
            b"Content-Encoding",
            b"X-Odd",
        )
    )
    value = (
        random.choice(
            (b"100-continue", b"gzip", b"websocket", b"00-" + b"f" * 32 + b"-" + b"f" * 16 + b"-01", *TEXTS)
        )
        .replace(b"\r\n", b"")
        .replace(b"\0", b"")
    )
    more = name + b": " + value + b"\r\n"
    if random.random() < 0.2:
        more *= random.choice((2, 50))
    return Sent(
        "headers", post(b"/classify", b"image/tiff", random.choice(hostile.plain), more), 1, goes_on=False
    )


def _path(hostile: Hostile, random: Random) -> Sent:
    """Another path or method."""
    target = random.choice(PATHS) + _query(random)
    body = b"" if random.random() < 0.5 else hostile.file(random)
    content = post(target, random.choice(KINDS), body)
    method = random.choice(METHODS)
    return Sent("path", method + content[4:], 1 if body else 0, goes_on=method not in (b"HEAD", b"BREW"))


def _wire(hostile: Hostile, random: Random) -> Sent:
    """What is hardly HTTP."""
    body = random.choice(hostile.plain)
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(body[i : i + 999]), body[i : i + 999]) for i in range(0, len(body), 999)
    )
    chunked = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/tiff\r\nTransfer-Encoding: chunked\r\n\r\n"
    sound = post(b"/classify", b"image/tiff", body)
    content = random.choice((
        chunked + chunks + b"0\r\n\r\n",
        chunked + chunks + b"0\r\nX-Trailer: 1\r\n\r\n",
        chunked + b"ffffffffffffffffff\r\n" + body,
        chunked + b"-1\r\n" + body,
        chunked.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n") + chunks + b"0\r\n\r\n",
        sound.replace(b"Content-Length: ", b"Content-Length: -"),
        sound.replace(b"Content-Length: ", b"Content-Length: 1e"),
        sound.replace(b"Content-Length: ", b"Content-Length: 99999999999999999999"),
        sound.replace(b"Content-Length: ", b"Content-Length: 10\r\nContent-Length: "),
        sound[: random.randrange(len(sound))],
        sound.replace(b"HTTP/1.1", random.choice((b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b"", b"ICY"))),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.randbytes(200),
        b"GET /" + b"a" * random.choice((100, 70_000)) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /model HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * random.choice((10, 20_000)) + b"\r\n",
        random.randbytes(random.choice((1, 100, 5000))),
        sound * 3,
    ))  # fmt: skip
    return Sent("wire", content, 1, goes_on=False)


_KINDS = {
    "tiff": 50,
    "other": 6,
    "npy": 12,
    "files": 8,
    "form": 8,
    "fields": 6,
    "body": 4,
    "headers": 3,
    "path": 2,
    "wire": 2,
}
_MAKERS: dict[str, Callable[[Hostile, Random], Sent]] = {
    "tiff": _tiff, "other": _other_route, "npy": _npy, "files": _files, "form": _form, "fields": _fields, "body": _body,
    "headers": _headers, "path": _path, "wire": _wire,
}  # fmt: skip
