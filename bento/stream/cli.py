"""`tilewise stream`: classify the scenes that messages in an SQS queue announce."""

import logging
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import click

from tilewise.bento.batch.cli import grid_options, output_options, precision_option
from tilewise.bento.batch.worker import NETWORK_THREADS
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.precision import Precision, pick
from tilewise.bento.inference.windows import GridOptions
from tilewise.bento.monitoring.logs import LogStyle, configure, get_logger
from tilewise.bento.results.writer import OutputOptions
from tilewise.bento.stream.allow_list import AllowList
from tilewise.bento.stream.consumer import Consumer, ConsumerOptions, NoticeStatus, serve
from tilewise.bento.stream.notices import MAX_BYTES
from tilewise.bento.stream.queue import MAX_HIDDEN_S, Queue
from tilewise.bento.stream.worker import SceneWorker, SceneWorkerOptions
from tilewise.datasets.core.console import (
    CONTEXT,
    FOLDER,
    model_option,
    one_line_errors,
    option_group,
    out_option,
    with_options,
)
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.scenes import SceneOptions
from tilewise.datasets.scenes.options import scene_options
from tilewise.models.model_file import find_model, usable_cores

_LOG = logging.getLogger("tilewise")
_DEFAULT_RECEIVES = 5

_QUEUE_OPTIONS = (
    click.option("--queue", "queue", required=True, help="URL or name of the SQS queue of notices."),
    click.option(
        "--results", "results", help="URL or name of an SQS queue, or ARN of an SNS topic, for the results."
    ),
    click.option(
        "--dead-letters",
        "dead_letters",
        help="URL or name of the SQS queue for notices that cannot be used. Default: that of the redrive "
        "policy.",
    ),
)


def _open_queue(queue: str, dead_letters: str | None, results: str | None) -> Queue:
    return Queue(queue, dead_letters, results)


queue_options = option_group("queue", _open_queue, _QUEUE_OPTIONS)
"""Add --queue, --results and --dead-letters, as one argument `queue`."""

_INTAKE_OPTIONS = (
    click.option(
        "--in-flight",
        "in_flight",
        default=1,
        show_default=True,
        type=click.IntRange(1, 64),
        help="Scenes that are classified at a time, with the cores divided among them.",
    ),
    click.option(
        "--lease",
        "lease",
        default=120,
        show_default=True,
        type=click.IntRange(3, MAX_HIDDEN_S // 2),
        help="Seconds that a notice in work is hidden from other consumers; renewed every third of it.",
    ),
    click.option(
        "--receives",
        "receives",
        type=click.IntRange(1, 1000),
        help="Attempts before a notice goes to the dead letters. Default: as the queue's redrive policy, or "
        "else "
        f"{_DEFAULT_RECEIVES}.",
    ),
    click.option(
        "--retry-seconds",
        "retry_seconds",
        default=30,
        show_default=True,
        type=click.IntRange(0, MAX_HIDDEN_S),
        help="Seconds before a scene that failed is tried again; doubled each time.",
    ),
    click.option(
        "--wait",
        "wait",
        default=5,
        show_default=True,
        type=click.IntRange(0, 20),
        help="Seconds of one long poll for notices; SIGTERM is noticed after it.",
    ),
    click.option(
        "--grace",
        "grace",
        default=20.0,
        show_default=True,
        type=click.FloatRange(0),
        help="Seconds that scenes in work have to finish on SIGTERM; then their notices are returned to the "
        "queue.",
    ),
    click.option(
        "--idle",
        "idle",
        metavar="SECONDS",
        type=click.FloatRange(0),
        help="End when no notice came for so long. Default: never.",
    ),
    click.option(
        "--max-seconds",
        "max_seconds",
        default=3600.0,
        show_default=True,
        type=click.FloatRange(1, MAX_HIDDEN_S),
        help="Seconds that a scene may take.",
    ),
    click.option(
        "--max-pixels",
        "max_pixels",
        default=500_000_000,
        show_default=True,
        type=click.IntRange(1),
        help="Pixels of a scene: width × height. A whole Sentinel-2 tile has 120,560,400.",
    ),
    click.option(
        "--max-bytes",
        "max_bytes",
        default=MAX_BYTES,
        show_default=True,
        type=click.IntRange(1),
        help="Bytes of a notice.",
    ),
    click.option(
        "--min-free",
        "min_free",
        default=2**30,
        show_default=True,
        type=click.IntRange(0),
        help="Free bytes on the results' disk below which no notice is taken.",
    ),
)
intake_options = option_group("intake", dict, _INTAKE_OPTIONS)
"""Add the options for how many notices are taken, when they return and how large scenes may be, as
`intake`."""

_LOG_OPTIONS = (
    click.option(
        "--metrics",
        "metrics",
        metavar="HOST:PORT",
        help="Serve Prometheus metrics there, e.g. :9105 (this machine only).",
    ),
    click.option(
        "--log",
        "log",
        envvar="TILEWISE_LOG",
        type=click.Choice([style.value for style in LogStyle]),
        help="Format of the log on standard error; off: warnings and errors only. Default: text in a "
        "terminal, else "
        "json.",
    ),
)


@click.command(context_settings={**CONTEXT, "auto_envvar_prefix": "TILEWISE_STREAM"})
@out_option(FOLDER, "Folder of the results.")
@queue_options
@click.option(
    "--allow",
    "allow",
    multiple=True,
    required=True,
    metavar="SOURCE",
    help="A source that notices may name, repeatable: a folder, https://host/path/, or "
    "s3://bucket/path/=https://host/path/ (the URL to read it from).",
)
@model_option
@precision_option
@lambda command: with_options(command, _LOG_OPTIONS)
@intake_options
@output_options
@grid_options
@scene_options
@one_line_errors
def main(
    out: Path,
    queue: Queue,
    allow: tuple[str, ...],
    model: str | None,
    precision: str,
    metrics: str | None,
    log: str | None,
    intake: dict[str, Any],
    outputs: OutputOptions,
    grid: GridOptions,
    reading: SceneOptions,
) -> None:
    """Classify the scenes that notices in an SQS queue announce, until SIGTERM or Ctrl-C.

    \b
    A notice is one of these, sent by itself or through SNS:
      {"scene": "/archive/S2A_….SAFE", "id": "yours"}
      {"scene": "s3://tiles/a/item.json"}             a STAC item's address
      {"scene": "/archive/a.tif", "bands": "l2a", "level": "L2A", "scale": 0.0001, "offset": -1000}
      {"type": "Feature", "assets": {…}, …}           a STAC item

    \b
    Each scene gets a folder of its own in the folder of results, with the files of `tilewise batch`, and its
    result is sent as JSON. The scene of a duplicate notice is classified once; its result is sent twice, with
    the same id.

    \b
    Try it, run it:
      aws sqs send-message --queue-url URL --message-body '{"scene": "/archive/a.tif"}'
      tilewise stream --queue URL --allow /archive --out MAPS --results RESULTS_URL
      tilewise stream --queue URL --allow /archive --out MAPS --idle 60      # ends when the queue is empty

    A malformed notice, or one that names a source outside --allow, goes to the dead letters at once; the
    notice of a scene that fails goes there after several attempts; always with the reason. A notice is
    deleted only after its result is out, so a consumer may be killed at any time. Credentials, region and
    AWS_ENDPOINT_URL are found as in all programs for AWS.

    Every option may be set by an environment variable: TILEWISE_STREAM_QUEUE, TILEWISE_STREAM_ALLOW (several,
    separated by blanks), TILEWISE_STREAM_IN_FLIGHT and so on.

    Exit status: 0 stopped by SIGTERM, or idle; 1 it cannot start, or was idle and notices went to the dead
        letters;
    2 usage error; 130 stopped by Ctrl-C.
    """
    _configure_log(log)
    sources = AllowList.parse(allow)
    engine = Engine(pick(find_model(model), Precision(precision)), NETWORK_THREADS)
    threads = max(1, usable_cores() // intake["in_flight"])
    worker_options = SceneWorkerOptions(grid, outputs, threads, intake.pop("max_pixels"))
    receives = receives_of(queue, intake.pop("receives"))
    options = ConsumerOptions(sources, reading, receives=receives, **intake)
    consumer = Consumer(queue, SceneWorker(out, engine, worker_options), out, options)
    if metrics:
        serve(metrics)
    sys.exit(_run(consumer, queue, engine))


def _configure_log(style: str | None) -> None:
    configure(LogStyle(style) if style else LogStyle.TEXT if sys.stderr.isatty() else LogStyle.JSON)
    if style == LogStyle.OFF:
        _LOG.setLevel(logging.WARNING)


def receives_of(queue: Queue, requested: int | None) -> int:
    """Return the number of attempts before a notice goes to the dead letters.

    Raises:
        TilewiseError: the queue's redrive policy would move notices there earlier, without a reason.
    """
    policy = queue.redrive
    if requested and policy and requested > policy.receives:
        raise TilewiseError(
            f"--receives {requested}: the redrive policy of {queue.url} takes notices away after "
            f"{policy.receives} "
            "times, without a reason; allow no more than it does"
        )
    return requested or (policy.receives if policy else _DEFAULT_RECEIVES)


def _run(consumer: Consumer, queue: Queue, engine: Engine) -> int:
    """Run until a signal, or until no notice comes; return the exit status."""
    signals: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        consumer.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    fields = {
        "queue": queue.url,
        "dead_letters": queue.dead_letters,
        "model": engine.identity,
        "process": os.getpid(),
    }
    get_logger().info("the consumer begins", **fields)
    counts = consumer.run()
    get_logger().info("the consumer ends", **{status.value: counts[status] for status in NoticeStatus})
    return _exit_status(signals, counts)


def _exit_status(signals: list[int], counts: Counter[NoticeStatus]) -> int:
    if signals:
        return 130 if signals[0] == signal.SIGINT else 0
    return 1 if counts[NoticeStatus.DEAD_LETTERED] else 0
