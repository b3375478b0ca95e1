"""A candidate beside a champion: real services, HAProxy before them, Prometheus with the shipped rules above
them."""

import io
import json
import shutil
import signal
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from canary import Haproxy, KubernetesRoute, RouteError, balanced, main, scraped
from click.testing import CliRunner, Result
from monitoring import Monitoring, ProgramError, free_ports, missing_programs, monitoring, running
from servers import Server, served
from stage import Client
from tiny_onnx import write_model
from watched import tiles, until, watched_metadata

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.readers.eurosat import CLASSES

pytestmark = pytest.mark.slow

MISSING = [*missing_programs(), *([] if shutil.which("haproxy") else ["haproxy"])]
needs_programs = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed; apt-get install {' '.join(MISSING)}"
)
TRAINING = tiles(20, seed=1)


def model(path: Path, version: str, answer: str = "Forest", logit: float = 6) -> Path:
    """Write a model that always gives the same answer."""
    weights = np.zeros((len(BAND_NAMES) + 1, len(CLASSES)), np.float32)
    weights[-1, CLASSES.index(answer)] = logit
    told = watched_metadata(TRAINING).model_copy(update={"version": version})
    return write_model(path, told.model_dump_json(), weights=weights)


@dataclass(frozen=True)
class Site:
    """Both services, each with the file of its model, the balancer before them, and what watches them."""

    champion: Server
    candidate: Server
    models: tuple[Path, Path]
    balancer: str
    route: Haproxy
    watch: Monitoring

    def run(self, *more: object, minutes: float = 0.02, steps: str = "50,100") -> Result:
        words = ["run", "--prometheus", self.watch.prometheus, "--haproxy", self.route.path, "--steps", steps]
        both = ["--champion", self.champion.url, "--candidate", self.candidate.url]
        targets = ["--targets", self.watch.folder / "targets.json", "--minutes", minutes]
        return command(*words, *both, *targets, *more)


def command(*words: object) -> Result:
    return CliRunner().invoke(main, [*map(str, words)])


@pytest.fixture(autouse=True)
def sigterm_as_before() -> Iterator[None]:
    """The commands take SIGTERM for Ctrl-C, which a process of tests should not keep."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("site")
    homes = [home / "champion", home / "candidate"]
    for folder in homes:
        folder.mkdir()
    models = model(homes[0] / "model.onnx", "1"), model(homes[1] / "model.onnx", "bad", "River", logit=1)
    settings = {"TILEWISE_WORKERS": "1", "TILEWISE_RELOAD_SECONDS": "1"}
    with ExitStack() as stack:
        champion, candidate = (
            stack.enter_context(served(path, folder, **settings))
            for path, folder in zip(models, homes, strict=True)
        )
        addresses = [
            f"127.0.0.1:{free_ports(1)[0]}",
            *(each.url.removeprefix("http://") for each in (champion, candidate)),
        ]
        route = stack.enter_context(balanced(home / "balancer", *addresses))
        # Longer than a busy machine may keep Prometheus waiting for a scrape: a service that is late is not
        # gone.
        watch = stack.enter_context(monitoring(home / "watch", [addresses[1]], hold="6s", scrape="2s"))
        until(lambda: bool(watch.query('up{job="tilewise"} == 1')), "the champion is scraped")
        yield Site(champion, candidate, models, f"http://{addresses[0]}", route, watch)


@pytest.fixture
def callers(site: Site) -> Iterator[Client]:
    """Client who send tiles to the balancer while a test runs."""
    sending = Client(site.balancer, tiles=20, pause=0.1)
    sending.start()
    yield sending
    sending.stop()


def answering(url: str) -> set[str]:
    """The versions that answer ten requests at a URL."""
    stream = io.BytesIO()
    np.save(stream, TRAINING[:1])
    kind = {"Content-Type": "application/octet-stream"}
    with httpx.Client(base_url=url, headers=kind, trust_env=False, timeout=30) as client:
        responses = [client.post("/classify", content=stream.getvalue()).json() for _ in range(10)]
    return {answer["model"]["version"] for answer in responses}


@needs_programs
def test_a_share_is_a_share_of_the_tiles_and_nothing_else(site: Site) -> None:
    assert answering(site.balancer) == {"1"}
    assert command("share", 50, "--haproxy", site.route.path).output == "50 % to the candidate\n"
    assert site.route.weights() == {"champion": 50, "candidate": 50}
    assert answering(site.balancer) == {"1", "bad"}
    assert httpx.get(f"{site.balancer}/model", trust_env=False, timeout=30).json()["version"] == "1"
    command("share", 0, "--haproxy", site.route.path)
    assert answering(site.balancer) == {"1"}


@needs_programs
def test_a_candidate_that_nobody_asked_is_not_judged(site: Site) -> None:
    done = site.run("--min-requests", 1000)
    assert done.exit_code == 1, done.output
    assert "fewer than 1000 requests" in done.stderr
    assert site.route.weights()["candidate"] == 0


@needs_programs
def test_alerts_take_a_bad_candidate_out(site: Site, callers: Client) -> None:
    done = site.run("--min-requests", 10_000, minutes=1)
    assert done.exit_code == 3, done.output
    assert "TilewiseCanary" in done.stderr
    assert site.route.weights() == {"champion": 100, "candidate": 0}
    assert "candidate" not in (site.watch.folder / "targets.json").read_text()
    assert callers.failed == {}


@needs_programs
def test_a_good_candidate_becomes_the_champion_without_a_request_lost(site: Site, callers: Client) -> None:
    good = model(site.models[1].with_name("good.onnx"), "good", "Forest", logit=7)
    shutil.copyfile(good, site.models[1])
    until(
        lambda: "good" in httpx.get(f"{site.candidate.url}/model", trust_env=False).text,
        "it serves the good one",
    )
    until(
        lambda: not site.watch.query('ALERTS{action="rollback", alertstate="firing"}'),
        "old alerts have ended",
    )
    refused = site.run("--min-requests", 5, "--wait", 1, "--full", "false")
    assert refused.exit_code == 1, refused.output
    assert "'false' ended with 1, so the champion stays" in refused.stderr
    assert site.route.weights()["candidate"] == 0

    done = site.run("--min-requests", 5, "--wait", 1, "--full", f"cp {good} {site.models[0]}")
    assert done.exit_code == 0, done.output
    assert "100 % to the candidate" in done.output
    assert "the champion's service has taken it up" in done.output
    assert answering(site.balancer) == {"good"}
    assert site.route.weights() == {"champion": 100, "candidate": 0}
    assert callers.failed == {}
    again = site.run()
    assert again.exit_code == 1
    assert "register another candidate first" in again.stderr


@needs_programs
def test_a_watch_after_a_release_brings_the_one_before_back(site: Site, tmp_path: Path) -> None:
    guard = ["guard", "--prometheus", site.watch.prometheus, "--minutes", 0.02]
    assert "no alert in 0.02 minutes" in command(*guard).output
    known = (site.watch.folder / "targets.json").read_text()
    script = program(tmp_path / "rollback", f'printf "%s\\n" "$@" > {tmp_path}/said')
    site.watch.set_targets(["127.0.0.1:9"])
    try:
        done = command(*guard[:-1], 1, "--rollback", script)
    finally:
        (site.watch.folder / "targets.json").write_text(known)
    assert done.exit_code == 3, done.output
    assert (tmp_path / "said").read_text() == "--why\nTilewiseGone\n"


@needs_programs
def test_without_prometheus_nobody_is_tried(site: Site) -> None:
    words = ["run", "--prometheus", "http://127.0.0.1:9", "--haproxy", site.route.path]
    done = command(*words, "--champion", site.champion.url, "--candidate", "http://127.0.0.1:9")
    assert done.exit_code == 1
    assert "http://127.0.0.1:9: the service does not respond" in done.stderr
    assert site.route.weights()["candidate"] == 0


def test_prometheus_is_told_of_the_candidate_for_as_long_as_it_is_tried(tmp_path: Path) -> None:
    targets = tmp_path / "targets.json"
    targets.write_text(json.dumps([{"targets": ["a:1"]}]))
    with scraped(targets, "http://b:2"):
        assert json.loads(targets.read_text()) == [
            {"targets": ["a:1"]},
            {"targets": ["b:2"], "labels": {"track": "candidate"}},
        ]
    assert json.loads(targets.read_text()) == [{"targets": ["a:1"]}]


def program(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_in_kubernetes_weights_are_patched_into_the_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "kubectl", f'printf "%s\\n" "$@" > {tmp_path}/said')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    KubernetesRoute("tilewise", "maps").set_fraction(25)
    words = (tmp_path / "said").read_text().splitlines()
    assert words[:7] == ["--namespace", "maps", "patch", "httproute", "tilewise", "--type", "json"]
    patches = {patch["path"]: patch["value"] for patch in json.loads(words[-1])}
    assert patches == {"/spec/rules/0/backendRefs/0/weight": 75, "/spec/rules/0/backendRefs/1/weight": 25}
    program(tmp_path / "kubectl", "echo 'no such route' >&2; exit 1")
    with pytest.raises(RouteError, match="no such route"):
        KubernetesRoute("tilewise", "maps").set_fraction(25)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("share", 5), "--haproxy SOCKET or --httproute NAME"),
        (("share", 101, "--httproute", "x"), "0<=x<=100"),
        (("run", "--prometheus", "p", "--champion", "a", "--candidate", "b", "--steps", "50,5"), "rising"),
    ],
)
def test_what_is_said_wrong_is_told_before_anything_happens(words: tuple[object, ...], message: str) -> None:
    done = command(*words)
    assert done.exit_code == 2
    assert message in done.output


def test_a_balancer_that_is_gone_is_said(tmp_path: Path) -> None:
    done = command("share", 5, "--haproxy", tmp_path / "none.sock")
    assert done.exit_code == 1
    assert "HAProxy does not respond" in done.stderr


def test_a_program_that_ends_is_said_with_its_last_words(tmp_path: Path) -> None:
    words = ["sh", "-c", "echo out of luck; exit 3"]
    with (
        pytest.raises(ProgramError, match=r"lucky is not ready .* out of luck"),
        running("lucky", words, tmp_path, "http://127.0.0.1:9"),
    ):
        pass
    with (
        pytest.raises(ProgramError, match="is not installed"),
        running("none", ["no-such-program"], tmp_path, ""),
    ):
        pass
