"""What a message says: one scene, in one of the forms that archives and teams send.

1. `{"scene": PATH or ADDRESS}`, with what its files do not say: bands, level, scale, offset; and an id of the sender's.
2. A STAC item, as Cirrus and other archives publish it.
3. Either of them as SNS hands it to SQS: in the text `Message` of `{"Type": "Notification", …}`.

Messages are hostile: they are bounded, of known keys and types, and what they point to is admitted by `places.py`.
"""

import json
from dataclasses import dataclass, field, fields
from typing import Any

from datasets.command import make_statement
from datasets.errors import NoticeError, SentileError
from datasets.radiometry import Level, Statement

MOST_BYTES = 256 * 2**10
_LONGEST_ID = 256
_TEXTS, _NUMBERS = ("bands", "level"), ("scale", "offset")
_KEYS = frozenset({"scene", "id", *_TEXTS, *_NUMBERS})
_FORMS = 'send {"scene": PATH or ADDRESS} or a STAC item, by itself or through SNS'


@dataclass(frozen=True, slots=True)
class Notice:
    """A scene that somebody tells of.

    Attributes:
        scene: its path or address; "" where the item itself was sent.
        item: a STAC item that was sent whole; {} where there is none.
        id: the sender's own, which comes back with the result; "" where there is none.
        said: what its files do not say.
    """

    scene: str = ""
    item: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    said: Statement = field(default_factory=Statement)

    def fill(self, otherwise: Statement) -> Statement:
        """Return what is said of the scene: by the notice, else by the operator."""
        told = {item.name: getattr(self.said, item.name) for item in fields(Statement)}
        return Statement(**{name: getattr(otherwise, name) if said is None else said for name, said in told.items()})


def parse_notice(body: str, most_bytes: int = MOST_BYTES) -> Notice:
    """Return what a message says.

    Raises:
        NoticeError: it is too long, no JSON, of no known form, or says what cannot be.
    """
    if len(body.encode(errors="replace")) > most_bytes:
        raise NoticeError(
            f"the message is longer than {most_bytes:,} bytes; send the scene's address instead of its content"
        )
    content = _object(body, "the message")
    if "Type" in content:
        content = _out_of_sns(content)
    if content.get("type") == "Feature":
        return Notice(item=content, id=_text(content, "id")[:_LONGEST_ID])
    if "scene" in content:
        return _of_plain(content)
    raise NoticeError(f"the message names no scene; {_FORMS}")


def _out_of_sns(content: dict[str, Any]) -> dict[str, Any]:
    if content["Type"] != "Notification" or not isinstance(content.get("Message"), str):
        raise NoticeError(f"the message comes from SNS and is no notification; {_FORMS}")
    return _object(content["Message"], "what SNS handed on")


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        content = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise NoticeError(f"{what} is no sound JSON; {_FORMS}") from error
    if not isinstance(content, dict):
        raise NoticeError(f"{what} is no JSON object; {_FORMS}")
    return content


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _of_plain(content: dict[str, Any]) -> Notice:
    if unknown := sorted(set(content) - _KEYS):
        raise NoticeError(f"the message has the unknown key {unknown[0][:80]!r}; known are {', '.join(sorted(_KEYS))}")
    return Notice(scene=_text(content, "scene"), id=_text(content, "id")[:_LONGEST_ID], said=_statement(content))


def _statement(content: dict[str, Any]) -> Statement:
    bands, level = (_text(content, key) or None for key in _TEXTS)
    scale, offset = (_number(content, key) for key in _NUMBERS)
    if level and level.upper() not in set(Level):
        raise NoticeError(f"level is {' or '.join(Level)}, not {level[:80]!r}")
    try:
        return make_statement(bands, level, scale, offset)
    except SentileError as error:
        raise NoticeError(str(error)) from error


def _text(content: dict[str, Any], key: str) -> str:
    value = content.get(key, "")
    if not isinstance(value, str):
        raise NoticeError(f"{key} is a text, not {json.dumps(value)[:80]}")
    return value


def _number(content: dict[str, Any], key: str) -> float | None:
    value = content.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NoticeError(f"{key} is a number, not {json.dumps(value)[:80]}")
    try:
        return float(value)
    except OverflowError as error:
        raise NoticeError(f"{key} is too large a number") from error
