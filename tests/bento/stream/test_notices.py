"""What messages say, whoever sent them."""

import json
from typing import Any

import pytest

from tilewise.bento.stream.notices import parse_notice
from tilewise.datasets.core.errors import NoticeError
from tilewise.datasets.core.radiometry import Level, ReadOptions

ITEM = {"type": "Feature", "id": "S2A_1", "assets": {"B02": {"href": "B02.tif"}}}


def through_sns(message: str) -> str:
    return json.dumps(
        {"Type": "Notification", "MessageId": "1", "TopicArn": "arn:aws:sns:…", "Message": message}
    )


def test_the_three_forms_are_understood() -> None:
    plain = json.dumps({"scene": "/archive/a.tif", "id": "job 7"})
    assert parse_notice(plain).scene == "/archive/a.tif"
    assert parse_notice(plain).id == "job 7"
    assert parse_notice(json.dumps(ITEM)).item == ITEM
    assert parse_notice(through_sns(plain)) == parse_notice(plain)
    assert parse_notice(through_sns(json.dumps(ITEM))).item == ITEM


def test_what_files_do_not_say_comes_from_the_notice_and_else_from_the_operator() -> None:
    notice = parse_notice(json.dumps({"scene": "a", "bands": "rgb", "level": "l2a", "offset": 0}))
    assert notice.overrides.bands == ("B04", "B03", "B02")
    filled = notice.fill(ReadOptions(bands=("B02",), scale=0.0001, offset=-1000))
    assert filled == ReadOptions(("B04", "B03", "B02"), Level.L2A, 0.0001, 0.0)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"scene": NaN}', "not valid JSON"),
        ('{"scene": "a", "offset": 1' + "0" * 5000 + "}", "not valid JSON"),
        ('{"scene": "a", "offset": 1' + "0" * 400 + "}", "too large a number"),
        ("[]", "not a JSON object"),
        ('"scene"', "not a JSON object"),
        ("{}", "names no scene"),
        ('{"scene": 5}', "scene is a text"),
        ('{"scene": "a", "ofset": 0}', "unknown key 'ofset'"),
        ('{"scene": "a", "offset": "0"}', "offset is a number"),
        ('{"scene": "a", "scale": true}', "scale is a number"),
        ('{"scene": "a", "scale": -1}', "the scale must be a number above 0"),
        ('{"scene": "a", "bands": "B99"}', "B99"),
        ('{"scene": "a", "level": "L3"}', "level is L1C or L2A, not 'L3'"),
        ('{"type": "FeatureCollection", "features": []}', "names no scene"),
        ('{"Type": "SubscriptionConfirmation", "Message": "x"}', "not a notification"),
        ('{"Type": "Notification"}', "not a notification"),
        ('{"Type": "Notification", "Message": "plain words"}', "the message inside SNS's is not valid JSON"),
        ('{"Records": [{"s3": {"bucket": {"name": "tiles"}}}]}', "names no scene"),
    ],
)
def test_what_is_no_notice_is_refused_with_a_reason(body: str, why: str) -> None:
    with pytest.raises(NoticeError, match=why):
        parse_notice(body)


def test_sns_inside_sns_is_not_unwrapped_without_end() -> None:
    body: Any = json.dumps({"scene": "a"})
    for _ in range(3):
        body = through_sns(body)
    with pytest.raises(NoticeError):
        parse_notice(body)


def test_long_messages_are_refused_unread() -> None:
    with pytest.raises(NoticeError, match="longer than 100 bytes"):
        parse_notice(json.dumps({"scene": "ü" * 60}, ensure_ascii=False), max_bytes=100)
