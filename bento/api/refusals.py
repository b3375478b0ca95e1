"""Callers whose requests are refused are slowed down, so that others need not wait for them."""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from tilewise.bento import metrics
from tilewise.bento.api.replies import status_of_code
from tilewise.bento.request_context import RequestContext, current
from tilewise.bento.serving.admission import caller_of

_BURST_SECONDS = 2.0  # of refusals at the allowed rate, before requests wait
_MAX_WAIT_SECONDS = 20.0
_MAX_CALLERS = 10_000  # that are remembered; the one that was refused longest ago is forgotten first
_NO_MISTAKE = frozenset({"no_data", "too_many_tasks"})  # tiles without data are among those of any scene
_NEVER_WAIT = frozenset({"GET", "HEAD"})


@dataclass(slots=True)
class _Debt:
    """Refusals of a caller that the allowed rate has not yet paid for, at a time."""

    refusals: float
    at: float


class SlowRefusals:
    """ASGI middleware: let requests of callers wait that had more refusals than `rate` a second.

    Refusals are the errors of a request and of its tiles for which it is itself to blame (4xx; neither a tile
    without data nor a full queue is). The first two seconds' worth are free. A waiting request counts as
    refused until it is answered, so that many at once wait one after another. GET and HEAD never wait: they
    are little work, and balancers probe with them.

    Args:
        app: the application inside.
        rate: refusals a second.
    """

    def __init__(self, app: ASGIApp, rate: float) -> None:
        self._app, self._rate = app, rate
        self._debts: OrderedDict[str, _Debt] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        caller = caller_of(Request(scope))
        wait = 0.0 if scope["method"] in _NEVER_WAIT else self._wait_of(caller)
        if wait:
            self._charge(caller, 1)
            metrics.SLOWED_REQUESTS.inc()
            await asyncio.sleep(wait)
        try:
            await self._app(scope, receive, send)
        finally:
            refused = _mistakes(current())
            if refused or wait:
                self._charge(caller, refused - bool(wait))

    def _wait_of(self, caller: str) -> float:
        """Return the seconds that a request of a caller waits now."""
        debt = self._debts.get(caller)
        if debt is None:
            return 0.0
        seconds = debt.refusals / self._rate - (time.monotonic() - debt.at) - _BURST_SECONDS
        return min(max(seconds, 0.0), _MAX_WAIT_SECONDS)

    def _charge(self, caller: str, refusals: int) -> None:
        """Add refusals to those of a caller; fewer than none are given back."""
        now = time.monotonic()
        debt = self._debts.pop(caller, None) or _Debt(0.0, now)
        left = max(debt.refusals - (now - debt.at) * self._rate, 0.0)
        self._debts[caller] = _Debt(max(left + refusals, 0.0), now)
        if len(self._debts) > _MAX_CALLERS:
            self._debts.popitem(last=False)


def _mistakes(request_context: RequestContext | None) -> int:
    """Return the errors of a request for which the caller is to blame."""
    if request_context is None:
        return 0
    return sum(
        count
        for code, count in request_context.codes.items()
        if code not in _NO_MISTAKE and status_of_code(code) < 500
    )
