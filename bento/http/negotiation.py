"""Which of several forms of an answer a client prefers (RFC 9110, section 12.5.1)."""

from collections.abc import Sequence


def negotiate(accept: str, offers: Sequence[str]) -> str | None:
    """Return the offer that the header `accept` likes best, the earlier of equals; None where it likes none.

    Args:
        accept: as it was sent; empty means that anything will do.
        offers: media types without parameters, the default first.
    """
    wanted = [_parse(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]
    best = max(offers, key=lambda offer: _quality(offer, wanted))
    return best if _quality(best, wanted) > 0 else None


def _quality(offer: str, wanted: Sequence[tuple[str, float]]) -> float:
    """Return what the most specific range that `offer` falls into says of it (0-1)."""
    ranges = dict(reversed(wanted))
    for span in (offer, f"{offer.partition('/')[0]}/*", "*/*"):
        if span in ranges:
            return ranges[span]
    return 0.0


def _parse(part: str) -> tuple[str, float]:
    span, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return span, _number(value)
    return span, 1.0


def _number(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0
