"""NumPy array files (.npy) with headers that lie, call for pickle, or are no headers at all.

The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import struct
from random import Random

MAGIC = b"\x93NUMPY"
DTYPES = (
    "<u2", ">u2", "|u1", "<f4", "<f8", "<i8", "|O", "|V0", "|V8", "<U4", "|S3", "<M8[ns]", "<c16", "|b1", "<f2", "u2",
    "", "<u99", "\\xff",
)  # fmt: skip
SHAPES = (
    "(1, 13, 64, 64)", "(2, 3, 64, 64)", "(0, 13, 64, 64)", "()", "(,)", "(1,)", "(-1, -13, 64, 64)",
    "(-1, 13, 64, 64)", "(99999999999, 13, 64, 64)", "(18446744073709551616,)", "(1e3, 13)", "(True, 13, 64, "
                                                                                             "64)",
    "[1, 13, 64, 64]", "None", "(1, 13, 64, 64, " + "1, " * 40 + ")", "'x'", "(" * 300, "-" * 3000 + "1",
    "(9**9**9,)", "{}", "(1, 13, 64, 64",
)  # fmt: skip
LINES = (
    "{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}",
    "{{'shape': {shape}, 'descr': {descr!r}, 'fortran_order': {fortran}}}",
    "{{'descr': [('a', {descr!r}), ('b', '|O')], 'fortran_order': {fortran}, 'shape': {shape}}}",
    "{{'descr': ({descr!r}, (2, 3)), 'fortran_order': {fortran}, 'shape': {shape}}}",
    "{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, 'more': 1}}",
    "{{'descr': {descr!r}, 'fortran_order': {fortran}}}",
    "dict(descr={descr!r}, fortran_order={fortran}, shape={shape})",
    "__import__('os').system('true') or {{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}}}",
    "{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}L}}",
    "{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}}} # {{", "\\x00\\x01'''",
)  # fmt: skip


def array_file(
    header: bytes, body: bytes, version: tuple[int, int] = (1, 0), length: int | None = None
) -> bytes:
    """Return an array file; `length` is what it says of its header, whatever that is."""
    overrides = len(header) if length is None else length
    size = (
        struct.pack("<H", overrides & 0xFFFF) if version[0] < 2 else struct.pack("<I", overrides & 0xFFFFFFFF)
    )
    return MAGIC + bytes(version) + size + header + body


def sound(tiles: int = 1) -> bytes:
    """Return an array file that is answered with 200."""
    header = f"{{'descr': '<u2', 'fortran_order': False, 'shape': ({tiles}, 13, 64, 64), }}".ljust(117) + "\n"
    return array_file(header.encode(), b"\xe8\x03" * (tiles * 13 * 64 * 64))


def mutate(random: Random) -> bytes:
    """Return a mutated array file."""
    line = random.choice(LINES[:2]) if random.random() < 0.6 else random.choice(LINES)
    overrides = {
        "descr": "<u2" if random.random() < 0.5 else random.choice(DTYPES),
        "fortran": random.choice(("False", "False", "True", "None", "1")),
        "shape": SHAPES[0] if random.random() < 0.3 else random.choice(SHAPES),
    }
    header = bytearray(
        (line.format(**overrides).ljust(random.choice((117, 1, 5000))) + "\n").encode("latin-1")
    )
    if random.random() < 0.3:
        header[random.randrange(len(header))] = random.randrange(256)
    version = random.choice(((1, 0), (1, 0), (2, 0), (3, 0), (4, 0), (0, 9), (255, 255)))
    length = None if random.random() < 0.8 else random.choice((0, 1, 117, 65535, 2**32 - 1))
    body = b"\xe8\x03" * random.choice((0, 1, 4096, 13 * 4096))
    out = array_file(bytes(header), body, version, length)
    return out[: random.randrange(len(out))] if random.random() < 0.1 else out
