"""The command line of the consumer."""

import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import click

from tilewise.bento.batch.cli import grid_options, model_options, output_options
from tilewise.bento.batch.worker import NETWORK_THREADS
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.precision import Precision, pick
from tilewise.bento.inference.windows import GridOptions
from tilewise.bento.monitoring.logs import LogStyle, configure
from tilewise.bento.results.writer import OutputOptions
from tilewise.bento.stream.allow_list import Places
from tilewise.bento.stream.consumer import Consumer, ConsumerOptions, Fate, serve
from tilewise.bento.stream.notices import MAX_BYTES
from tilewise.bento.stream.queue import LONGEST_HIDDEN, Queue
from tilewise.bento.stream.worker import SceneWorker, SceneWorkerOptions
from tilewise.datasets.core.console import one_line_errors, with_options
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.scenes import SceneOptions
from tilewise.datasets.scenes.options import make_scene_options, scene_options
from tilewise.models.model_file import find_model, usable_cores

_LOG = logging.getLogger("tilewise")
_USUAL_RECEIVES = 5
_CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    "auto_envvar_prefix": "TILEWISE_STREAM",
}


def queue_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where notices come from and results go."""
    options = (
        click.option("--queue", required=True, help="URL or name of the SQS queue that notices come from."),
        click.option(
            "--allow",
            multiple=True,
            required=True,
            metavar="PLACE",
            help="Where notices may lead; may be said several times: a folder, https://host/path/, or "
            "s3://bucket/path/=https://host/path/ (what is read for it).",
        ),
        click.option("--results", help="URL or name of an SQS queue, or ARN of an SNS topic, that gets results."),
        click.option(
            "--dead-letters",
            help="URL or name of the SQS queue for notices that nobody can use; default: "
            "that of the queue's redrive policy.",
        ),
    )
    return with_options(command, options)


def pace_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how many notices are taken, and when they come back."""
    options = (
        click.option(
            "--in-flight",
            default=1,
            show_default=True,
            type=click.IntRange(1, 64),
            help="Notices worked on at a time, the cores shared out among them; no more are taken.",
        ),
        click.option(
            "--lease",
            default=120,
            show_default=True,
            type=click.IntRange(3, LONGEST_HIDDEN // 2),
            help="Seconds that a notice in work is hidden from other consumers; renewed every third of it.",
        ),
        click.option(
            "--receives",
            type=click.IntRange(1, 1000),
            help="Times that a notice is received before it goes to the dead letters; default: as the "
            f"queue's redrive policy says, else {_USUAL_RECEIVES}.",
        ),
        click.option(
            "--retry-seconds",
            default=30,
            show_default=True,
            type=click.IntRange(0, LONGEST_HIDDEN),
            help="After which a scene that failed is tried again; doubled each time.",
        ),
        click.option(
            "--wait",
            default=5,
            show_default=True,
            type=click.IntRange(0, 20),
            help="Seconds that one question for notices waits; SIGTERM is noticed after it.",
        ),
        click.option(
            "--grace",
            default=20.0,
            show_default=True,
            type=click.FloatRange(0),
            help="Seconds that scenes in work have on SIGTERM; then they are given back.",
        ),
        click.option(
            "--idle",
            metavar="SECONDS",
            type=click.FloatRange(0),
            help="End when no notice came for so long; default: never.",
        ),
    )
    return with_options(command, options)


def bound_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options beyond which nothing is worked on."""
    options = (
        click.option(
            "--max-seconds",
            default=3600.0,
            show_default=True,
            type=click.FloatRange(1, LONGEST_HIDDEN),
            help="That a scene may take.",
        ),
        click.option(
            "--max-pixels",
            default=500_000_000,
            show_default=True,
            type=click.IntRange(1),
            help="Of a scene: width × height. A whole Sentinel-2 tile has 120,560,400.",
        ),
        click.option("--max-bytes", default=MAX_BYTES, show_default=True, type=click.IntRange(1), help="Of a notice."),
        click.option(
            "--min-free",
            default=2**30,
            show_default=True,
            type=click.IntRange(0),
            help="Bytes of the results' disk without which no notice is taken.",
        ),
    )
    return with_options(command, options)


def telling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what the consumer tells of itself."""
    options = (
        click.option("--metrics", metavar="HOST:PORT", help="Answer Prometheus there, e.g. :9105 (this machine only)."),
        click.option(
            "--log",
            envvar="TILEWISE_LOG",
            type=click.Choice([style.value for style in LogStyle]),
            help="Form of the log on standard error; off: only what goes wrong. Default: json, but text at a terminal.",
        ),
    )
    return with_options(command, options)


@click.command(context_settings=_CONTEXT)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the results.")
@queue_options
@model_options
@telling_options
@pace_options
@bound_options
@output_options
@grid_options
@scene_options
@one_line_errors
def main(
    out: Path,
    queue: str,
    allow: tuple[str, ...],
    results: str | None,
    dead_letters: str | None,
    model: str | None,
    precision: str,
    metrics: str | None,
    log: str | None,
    **overrides: Any,
) -> None:
    """Classify the scenes that notices in an SQS queue tell of, until SIGTERM or Ctrl-C.

    \b
    A notice is one of these, sent by itself or through SNS:
      {"scene": "/archive/S2A_….SAFE", "id": "yours"}
      {"scene": "s3://tiles/a/item.json"}             a STAC item's address
      {"scene": "/archive/a.tif", "bands": "l2a", "level": "L2A", "scale": 0.0001, "offset": -1000}
      {"type": "Feature", "assets": {…}, …}           a STAC item

    \b
    Each scene gets a folder of its own in the folder of results, with the files of `tilewise batch`, and its
    result is sent as JSON. A notice that comes twice is done once and told of twice, with the same id.

    \b
    Try it, run it:
      aws sqs send-message --queue-url URL --message-body '{"scene": "/archive/a.tif"}'
      tilewise stream --queue URL --allow /archive --out MAPS --results RESULTS_URL
      tilewise stream --queue URL --allow /archive --out MAPS --idle 60      # ends when the queue is empty

    A notice that says nothing usable, or leads where it may not, goes to the dead letters at once; a scene that fails
    goes there after several tries; always with the reason. Nothing is deleted before its result is out, so a consumer
    may be killed at any time. Credentials, region and AWS_ENDPOINT_URL are found as by all programs for AWS.

    Every option may be set by the environment: TILEWISE_STREAM_QUEUE, TILEWISE_STREAM_ALLOW (several: parted by
    blanks), TILEWISE_STREAM_IN_FLIGHT and so on.

    Exit status: 0 it was told to end, or was idle; 1 it cannot begin, or was idle and notices went to the dead letters;
    2 the command is wrong; 130 ended by Ctrl-C.
    """
    _log_as(log)
    places, waiting = Places.parse(allow), Queue(queue, dead_letters, results)
    engine = Engine(pick(find_model(model), Precision(precision)), NETWORK_THREADS)
    consumer = _consumer(waiting, engine, out, places, **overrides)
    if metrics:
        serve(metrics)
    sys.exit(_run(consumer, waiting, engine))


def _log_as(overrides: str | None) -> None:
    configure(LogStyle(overrides) if overrides else LogStyle.TEXT if sys.stderr.isatty() else LogStyle.JSON)
    if overrides == LogStyle.OFF:
        _LOG.setLevel(logging.WARNING)


def _consumer(
    queue: Queue,
    engine: Engine,
    out: Path,
    places: Places,
    *,
    outputs: tuple[Any, ...],
    formats: tuple[Any, ...],
    coverage: float,
    stride: int,
    cell: int,
    min_valid_fraction: float,
    max_pixels: int,
    receives: int | None,
    **overrides: Any,
) -> Consumer:
    pace = {name: overrides.pop(name) for name in ConsumerOptions.__slots__ if name in overrides}
    reading: SceneOptions = make_scene_options(**overrides)
    threads = max(1, usable_cores() // pace["in_flight"])
    work = SceneWorkerOptions(
        GridOptions(stride, min_valid_fraction, cell), OutputOptions(outputs, formats, coverage), threads, max_pixels
    )
    options = ConsumerOptions(places, reading, receives=receives_of(queue, receives), **pace)
    return Consumer(queue, SceneWorker(out, engine, work), out, options)


def receives_of(queue: Queue, overrides: int | None) -> int:
    """Return how often a notice may be received.

    Raises:
        TilewiseError: the queue itself would bury notices before, and tell no reason.
    """
    policy = queue.redrive
    if overrides and policy and overrides > policy.receives:
        raise TilewiseError(
            f"--receives {overrides}: the redrive policy of {queue.url} takes notices away after {policy.receives} times, "
            "without a reason; allow no more than it does"
        )
    return overrides or (policy.receives if policy else _USUAL_RECEIVES)


def _run(consumer: Consumer, queue: Queue, engine: Engine) -> int:
    """Work until a signal, or until nothing comes; return the exit status."""
    ended_by: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        ended_by.append(number)
        consumer.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    fields = {"queue": queue.url, "dead_letters": queue.dead_letters, "model": engine.identity, "process": os.getpid()}
    _LOG.info("the consumer begins", extra={"fields": fields})
    fates = consumer.run()
    _LOG.info("the consumer ends", extra={"fields": {fate.value: fates[fate] for fate in Fate}})
    return _status(ended_by, fates)


def _status(ended_by: list[int], fates: Counter[Fate]) -> int:
    if ended_by:
        return 130 if ended_by[0] == signal.SIGINT else 0
    return 1 if fates[Fate.BURIED] else 0
