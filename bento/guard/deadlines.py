"""How long a request may take: a body must keep coming, and everything ends some time.

A client that announces much and sends little would hold its room (`bento.process.admission`) for ever. So the time
that the service spends waiting for a body is bounded by a time of grace and a least rate; waiting for room does not
count. What comes before the body, the head, is bounded in `bento.guard.connections`.
"""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bento.http.replies import refuse

_CLOSE = {"Connection": "close"}  # the rest of the body is not worth waiting for


class _Alarm:
    """Cancels the task that made it when some seconds are over; `asyncio.timeout` does so at twice the cost."""

    __slots__ = ("_rang", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._task, self._rang = asyncio.current_task(), False
        self._timer = asyncio.get_running_loop().call_later(max(seconds, 0), self._ring)

    def _ring(self) -> None:
        assert self._task is not None  # noqa: S101 - made in a task
        self._rang = True
        self._task.cancel()

    def stop(self) -> bool:
        """Stop it, and return whether it rang, and nobody else cancelled the task; then the task goes on."""
        self._timer.cancel()
        if not self._rang or self._task is None:
            return False
        self._rang = False
        return self._task.uncancel() == 0


class Deadlines:
    """ASGI middleware that ends requests which take too long: 408 where the client is late, 504 where the service is.

    Args:
        grace: seconds that any body may take.
        least_rate: bytes per second at which a body must come beyond that.
        most_seconds: for everything, until the last byte of the answer is taken.
    """

    def __init__(self, app: ASGIApp, grace: float, least_rate: float, most_seconds: float) -> None:
        self._app = app
        self._grace, self._least_rate, self._most_seconds = grace, least_rate, most_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        alarm = _Alarm(self._most_seconds)
        try:
            await self._app(scope, self._hurried(receive), send_and_note)
        except asyncio.CancelledError:
            if not alarm.stop():
                raise
            if not started:  # else nothing can be said any more; the server closes the connection
                await self._refuse(scope, receive, send)
        finally:
            alarm.stop()

    def _hurried(self, receive: Receive) -> Receive:
        """Return `receive` with a bound on the time that it waits for the body, all its parts together."""
        loop = asyncio.get_running_loop()
        waited, taken, whole = 0.0, 0, False

        async def receive_in_time() -> Message:
            nonlocal waited, taken, whole
            if whole:  # who asks now wants to know when the client goes
                return await receive()
            began = loop.time()
            alarm = _Alarm(self._grace + taken / self._least_rate - waited)
            try:
                message = await receive()
            except asyncio.CancelledError:
                if alarm.stop():
                    raise self._too_slow() from None
                raise
            finally:
                alarm.stop()
            waited += loop.time() - began
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            return message

        return receive_in_time

    def _too_slow(self) -> HTTPException:
        detail = f"the body came too slowly; send {self._least_rate / 1024:g} KiB a second or more"
        return HTTPException(408, detail, _CLOSE)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"not done within {self._most_seconds:g} seconds"
        await refuse(504, "timeout", message, "send fewer tiles at once, or try again later", **_CLOSE)(
            scope, receive, send
        )
