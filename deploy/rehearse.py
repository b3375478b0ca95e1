"""A model's whole life on one machine: `deploy/rehearsal` runs this; docs/lifecycle.md explains what it shows.

Every process is a real one and listens on the loopback interface: MLflow's server, the service, HAProxy before it,
Prometheus and Alertmanager with the shipped rules; git and DVC work in a clone of this project. Tiles are synthetic and
networks tiny, so that it ends in minutes. Only that, how long an alert's condition must hold, and some limits of the
gates differ from a site's.
"""

import json
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import click
import httpx
import yaml
from monitoring import Monitoring, MonitoringError, free_ports, missing_programs, monitoring
from programs import PROJECT, running, service
from routes import Haproxy, balanced
from stage import Callers, RehearsalError, Stage, git_identity

from tilewise.datasets.core.console import one_line_errors
from tilewise.models.model_file import usable_cores

STEPS = 11
LIMIT_MINUTES = 15
HOLD = "6s"  # how long an alert's condition must hold, where a site waits minutes
SCRAPE = "3s"  # a busy machine answers late
MARKS = "<!-- rehearsed -->\n", "<!-- end -->"
SELDOM_S, OFTEN_S = 2.0, 0.15  # between two requests: while models are trained, and where alerts need requests
DRIFT_GAIN = 0.55  # winter light: what is left of every reflectance
_NEEDED = {"git": "git", "haproxy": "haproxy"}

EXPERIMENT, GATES = "configs/experiments/rehearsal.yaml", "configs/gates-rehearsal.yaml"


@dataclass(frozen=True)
class Site:
    """What runs while the story is played.

    Attributes:
        champion, candidate, balancer, registry: URLs.
        route: the balancer's weights.
        watch: Prometheus and Alertmanager.
        callers: who sends tiles to the balancer.
    """

    champion: str
    candidate: str
    balancer: str
    registry: str
    route: Haproxy
    watch: Monitoring
    callers: Callers


def play(stage: Stage) -> None:
    """Play the story; raises RehearsalError where it goes otherwise than it must."""
    ports = free_ports(4)
    champion, candidate, balancer, registry = (f"http://127.0.0.1:{port}" for port in ports)
    stage.settings |= _settings(stage.folder, registry)
    with ExitStack() as stack:
        stage.step("a project in git, a DVC remote, a registry")
        found_project(stage)
        server = _mlflow(stage, registry)
        stack.enter_context(running("registry", server, stage.folder, f"{registry}/health", stage.settings))
        stage.must(True, f"git repository, DVC remote in remote/, MLflow's server at {registry}")
        first_model(stage)
        site = stack.enter_context(open_site(stage, champion, candidate, balancer, registry))
        refuse_a_bad_model(stage, site)
        better_data_and_model(stage)
        canary(stage, site)
        drift(stage, site)
        retrain(stage, site)
        roll_back_a_canary(stage, site)
        roll_back_the_champion(stage, site)


def found_project(stage: Stage) -> None:
    """Clone this project as it is committed, and let its pipeline start from few synthetic tiles."""
    shutil.rmtree(stage.project, ignore_errors=True)
    stage.project.mkdir()
    stage.run("git", "clone", "--quiet", str(PROJECT), ".")
    stage.run("dvc", "remote", "add", "--force", "--default", "rehearsal", str(stage.folder / "remote"), show=0)
    use_data(stage, tiles=40)


def use_data(stage: Stage, tiles: int) -> None:
    """Let the pipeline start from so many tiles of each class."""
    settings = {
        "obtain": f"tilewise data synth --out data/raw/synthetic --tiles {tiles} --seed 0",
        "folder": "data/raw/synthetic",
        "split": "--split random --fractions 0.5,0.2,0.3 --seed 0",
        "settings": EXPERIMENT,
    }
    text = yaml.safe_dump(settings, sort_keys=False)
    (stage.project / "configs/pipeline.yaml").write_text(text, encoding="utf-8")


def version_data(stage: Stage, name: str) -> None:
    """Make, validate and pack the tiles; commit and push this version of them."""
    stage.run("dvc", "repro", "--quiet", "pack", show=1)
    stage.run("git", "add", "--all", show=0)
    stage.run("git", "commit", "--quiet", "--message", f"Data: {name}", show=0)
    stage.run("git", "tag", "--annotate", "--message", name, name, show=0)
    stage.run("dvc", "push", show=1)


def train(stage: Stage, name: str, *more: str) -> None:
    """Train a network and register it as the candidate."""
    stage.python(
        *("-m", "tilewise", "train", "--config", EXPERIMENT, "--data.pack", "data/packed"),
        *("--tracking.uri", stage.settings["MLFLOW_TRACKING_URI"], "--tracking.experiment", "rehearsal"),
        *("--out", f"artifacts/runs/{name}", *more),
        show=0,
    )
    metrics = json.loads((stage.project / f"artifacts/runs/{name}/evaluation/metrics.json").read_text())
    stage.tell(f"    test split: {_figures(metrics)}")
    stage.python("-m", "tilewise", "register", "--run", f"artifacts/runs/{name}", "--by", "ci", "--why", name, show=1)


def promote(stage: Stage, *more: str, expect: int = 0, show: int = 24) -> str:
    """Measure the candidate by the gates, and promote it where they and a person let it."""
    return stage.python(
        *("-m", "tilewise", "promote", "--data", "data/packed", "--gates", GATES, *more),
        expect=expect,
        show=show,
    )


def first_model(stage: Stage) -> None:
    """Data 1 and model 1, through the gates, to champion."""
    stage.step("train v1 on the first version of the data")
    version_data(stage, "data-1")
    train(stage, "v1", "--trainer.max_epochs", "16")
    stage.step("v1 through the gates: a person approves, and its bento is built")
    promote(stage, "--approve", "Ada", "--why", "the first")


@contextmanager
def open_site(stage: Stage, champion: str, candidate: str, balancer: str, registry: str) -> Iterator[Site]:
    """Serve the champion, with a balancer and callers before it, and all that watches it."""
    stage.step("serve: the service follows models:/tilewise@champion, watched by Prometheus")
    follows = {"TILEWISE_RELOAD_SECONDS": "1", "TILEWISE_WORKERS": "1", "TILEWISE_OPEN_METRICS": "1"}
    drift = {"TILEWISE_DRIFT_WINDOW": "1024", "TILEWISE_DRIFT_MIN_TILES": "128"}
    command, settings = service(champion, stage.folder / "bentoml", "models:/tilewise@champion", **follows, **drift)
    with ExitStack() as stack:
        environment = stage.environment() | settings
        stack.enter_context(
            running("champion", command, stage.folder, f"{champion}/readyz", environment, stage.project)
        )
        addresses = [httpx.URL(url).netloc.decode() for url in (balancer, champion, candidate)]
        route = stack.enter_context(balanced(stage.folder, *addresses))
        watch = stack.enter_context(monitoring(stage.folder / "watch", [addresses[1]], hold=HOLD, scrape=SCRAPE))
        callers = Callers(balancer, pause=OFTEN_S)
        callers.start()
        stack.callback(callers.stop)
        site = Site(champion, candidate, balancer, registry, route, watch, callers)
        stage.until(lambda: callers.answered >= 20, "callers are answered through the balancer")
        stage.until(lambda: bool(watch.query("tilewise_drift")), "Prometheus sees the service and its drift")
        stage.must(run_of(champion) == "v1", f"GET {champion}/model answers v1")
        callers.pause = SELDOM_S
        yield site


@contextmanager
def busy(site: Site) -> Iterator[None]:
    """Let callers ask often for the length of the block."""
    site.callers.pause = OFTEN_S
    try:
        yield
    finally:
        site.callers.pause = SELDOM_S


def refuse_a_bad_model(stage: Stage, site: Site) -> None:
    """A model of too little training does not pass."""
    stage.step("v2, trained for one epoch: the gates refuse it")
    train(stage, "v2", "--trainer.max_epochs", "1", "--model.optimisation.rate", "0.0005")
    overrides = promote(stage, "--approve", "Ada", expect=1)
    stage.must("gates fail" in overrides, "refused, though a person had approved")
    stage.must(run_of(site.champion) == "v1", "the service goes on with v1")


def better_data_and_model(stage: Stage) -> None:
    """Data 2, and a model that learnt from them."""
    stage.step("a second version of the data, and v3 trained on it")
    use_data(stage, tiles=60)
    version_data(stage, "data-2")
    stage.python("-m", "tilewise", "data", "diff", "data-1", "data-2", show=-3)
    train(stage, "v3")


def canary(stage: Stage, site: Site) -> None:
    """Version 3 gets a growing share, and all of it in the end."""
    stage.step("v3 as a canary: 10 %, 50 %, then champion")
    promotion = f"-m training promote 3 --data data/packed --gates {GATES} --approve Grace --why better"
    before = site.callers.answered
    try_out(stage, site, "models:/tilewise/3", "10,50", "--full", f"{sys.executable} {promotion}", show=30)
    stage.must(run_of(site.champion) == "v3", "the champion's service took v3 up by itself, without a restart")
    stage.must(not site.callers.failed, f"{site.callers.answered - before} requests meanwhile, none failed")


def try_out(
    stage: Stage, site: Site, model: str, steps: str, *more: str, expect: int = 0, show: int = 8, minutes: float = 0.3
) -> str:
    """Run the canary, with its service started for it."""
    with busy(site):
        return stage.python(
            *("deploy/canary.py", "run", "--prometheus", site.watch.prometheus),
            *("--haproxy", str(site.route.path), "--champion", site.champion, "--candidate", site.candidate),
            *("--serve", model, "--steps", steps, "--minutes", str(minutes), "--least", "5", "--wait", "2"),
            *("--targets", str(site.watch.folder / "targets.json"), "--folder", str(stage.folder / "canary"), *more),
            expect=expect,
            show=show,
        )


def drift(stage: Stage, site: Site) -> None:
    """The tiles that callers send change."""
    stage.step(f"drift: winter light, every reflectance at {DRIFT_GAIN:.0%} of what it was")
    stage.must(not site.watch.alerts("TilewiseInputDrifts"), "before it, no band drifts")
    site.callers.gain = DRIFT_GAIN
    try:
        with busy(site):
            fired = site.watch.await_alert("TilewiseInputDrifts", seconds=180)
    except MonitoringError as error:
        raise RehearsalError(str(error)) from error
    stage.tell(f"  Alertmanager holds {len(fired)} × TilewiseInputDrifts; the first:")
    stage.tell(f"    {fired[0]['annotations']['summary']}")
    stage.tell(f"    {fired[0]['annotations']['runbook_url']}")
    actions = {alert["labels"].get("action") for alert in fired}
    stage.must(actions == {"retrain"}, "its label says what a machine may do: action=retrain")


def retrain(stage: Stage, site: Site) -> None:
    """What the alert asks for, by the command that cron and CI run; it ends at the gates."""
    stage.step("the alert starts a retraining, which ends at the gates")
    use_data(stage, tiles=80)
    stage.python(
        *("-m", "tilewise", "retrain", "--if-alert", site.watch.prometheus, "--gates", GATES, "--by", "cron"),
        expect=(0, 4),  # passed and waits for a person, or refused; what comes of so little training is open
        show=5,
    )
    stage.run("git", "commit", "--quiet", "--all", "--message", "Retrained because of drift", show=0)
    stage.run("dvc", "push", show=1)
    stage.must(run_of(site.champion) == "v3", "nobody approved it, so the service goes on with v3")
    site.callers.gain = 1.0


def roll_back_a_canary(stage: Stage, site: Site) -> None:
    """What the gates would have missed, alerts take out."""
    stage.step("v2 as a canary, past the gates: alerts take it out, no person does")
    try_out(stage, site, "models:/tilewise/2", "50", "--version", "2", expect=3, minutes=2)
    stage.must(site.route.shares()["candidate"] == 0, "the balancer gives the candidate 0 %")
    stage.must(run_of(site.champion) == "v3", "the service goes on with v3")


def roll_back_the_champion(stage: Stage, site: Site) -> None:
    """The champion before is the champion again."""
    stage.step("rollback: a person takes v3 back; the service follows, and the data")
    stage.python("-m", "tilewise", "rollback", "--by", "Ada", "--why", "rehearsed", show=1)
    stage.until(lambda: run_of(site.champion) == "v1", f"GET {site.champion}/model answers v1 again")
    stage.run("git", "checkout", "--quiet", "data-1", show=0)
    stage.run("dvc", "checkout", "data/raw/synthetic", "data/packed", show=3)  # no model was tracked at that time
    tiles = len(list((stage.project / "data/raw/synthetic").rglob("*.tif")))
    stage.must(tiles == 400, f"the data of v1 are back, too: {tiles} tiles")
    stage.python("-m", "tilewise", "history", show=30)
    failed = sum(site.callers.failed.values())
    stage.tell(f"  callers: {site.callers.answered} requests answered, {failed} not")


def run_of(url: str) -> str:
    """Return which run made the model that a service answers with: its version is that and a part of a digest."""
    version = str(httpx.get(f"{url}/model", trust_env=False, timeout=30).raise_for_status().json()["version"])
    return version.rpartition("-")[0]


def _mlflow(stage: Stage, url: str) -> list[str]:
    store, artifacts = stage.folder / "mlflow.db", stage.folder / "mlartifacts"
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]),
        *("--workers", "1", "--backend-store-uri", f"sqlite:///{store}"),
        *("--serve-artifacts", "--artifacts-destination", str(artifacts)),
    ]


def _settings(folder: Path, registry: str) -> dict[str, str]:
    """Return the environment of all commands of the story."""
    return {
        **git_identity(),
        "MLFLOW_TRACKING_URI": registry,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # four processes that nothing here needs
        "BENTOML_HOME": str(folder / "bentos"),
        "BENTOML_DO_NOT_TRACK": "True",
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",  # threads that wait for each other on a busy machine take all of its time
        "COLUMNS": "110",
    }


def _figures(metrics: dict[str, Any]) -> str:
    """Return the figures of the test split out of a run's metrics."""
    figures = metrics["groups"]["all"]
    return f"{figures['tiles']} tiles, accuracy {figures['accuracy']:.3f}, macro F1 {figures['macro_f1']:.3f}"


def write_down(log: Path, page: Path) -> None:
    """Put what was printed into a page, between its two marks; raises RehearsalError where it has none."""
    text = page.read_text(encoding="utf-8")
    before, begins, rest = text.partition(MARKS[0])
    _, ends, after = rest.partition(MARKS[1])
    if not ends:
        raise RehearsalError(f"{page}: has no place for the output; put {MARKS[0]} and {MARKS[1]} around it")
    head = f"Printed on {datetime.now(UTC):%Y-%m-%d}, on {usable_cores()} cores:"
    block = f"\n{head}\n\n```text\n{log.read_text(encoding='utf-8').strip()}\n```\n\n"
    page.write_text(before + begins + block + ends + after, encoding="utf-8")


def _too_late(number: int, frame: FrameType | None) -> None:
    raise RehearsalError("the time is over; --minutes gives it more")


def _require_programs() -> None:
    missing = [*missing_programs(), *(package for name, package in _NEEDED.items() if shutil.which(name) is None)]
    if missing:
        raise RehearsalError(f"not installed: {', '.join(missing)}; apt-get install {' '.join(missing)}")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Keeps logs, project and registry [artifacts/rehearsal/<time>]."
)
@click.option("--minutes", default=LIMIT_MINUTES, show_default=True, type=click.IntRange(1), help="It may take.")
@click.option("--document", type=click.Path(path_type=Path, exists=True), help="A page that gets the output.")
@one_line_errors
def main(folder: Path | None, minutes: int, document: Path | None) -> None:
    """Play a model's whole life on this machine, with real processes, and show what each step gave.

    Train v1, gates, promotion, service; a bad v2 refused; a better v3 as a canary, promoted; drift, alert, retraining;
    rollbacks. Exit status 0 says that all of it went as it must. Needs git, and Debian's haproxy, prometheus and
    prometheus-alertmanager; contacts nothing outside this machine.
    """
    _require_programs()
    folder = (folder or PROJECT / "artifacts/rehearsal" / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGALRM, _too_late)
    signal.alarm(minutes * 60)
    begun = time.monotonic()
    with (folder / "rehearsal.log").open("w", encoding="utf-8") as log:
        stage = Stage(folder, log, STEPS)
        play(stage)
        seconds = int(time.monotonic() - begun)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = int(used.ru_utime + used.ru_stime)
        minutes, seconds = divmod(seconds, 60)
        stage.tell(f"\nrehearsed in {minutes} min {seconds} s, with {cpu} s of processor time")
    click.echo(f"logs are in {folder}")
    if document:
        write_down(folder / "rehearsal.log", document)


if __name__ == "__main__":
    main()
