"""How many heaps the C library keeps: by default eight a core, each as large as the busiest thread ever made it."""

import ctypes
import sys

_ARENA_MAX = -8  # M_ARENA_MAX of mallopt(3)


def bound_arenas(most: int = 2) -> None:
    """Let all threads share `most` heaps, where the C library is glibc; to be called before there are threads.

    Decoding hostile and honest files in turn, in several threads, otherwise leaves hundreds of megabytes in pieces.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, most)
