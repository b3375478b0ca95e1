"""Build the images from the Dockerfiles that ship, without Docker, and run them.

    deploy/ci/images [service] [mlflow] [training] [compose]

Each runs as its own user on a read-only root with an empty /tmp; `compose` runs deploy/compose.yaml as a
whole (deploy/compose.py). Prints sizes and what was checked, and writes the list of packages of each image
(SBOM, CycloneDX) to artifacts/images. Needs root and Debian's buildah and mmdebstrap: `docker run` is
replaced by a chroot, and the base image by Debian's own Python under its name. Without names, all are built:
about 15 minutes and 30 GB in TMPDIR, mostly torch's.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import quote

import httpx
import pyarrow.parquet as pq
import yaml
from compose import make_stand_ins
from containers import BASE, DEPLOY, Images, Root, Volume, need, run, size_of
from monitoring import free_ports, running

from tilewise.bento.client import Client
from tilewise.datasets.acquire.synthetic import synthesise_scene, synthesise_tile, write_tile
from tilewise.datasets.core.console import one_line_errors

PROJECT = DEPLOY.parent
OUT = PROJECT / "artifacts" / "images"
FORBIDDEN = ("gcc", "cc", "c++", "git", "pip", "strip")  # programs that a running service has no use for
MAX_SERVICE_MB = 450
TRAINING_SECONDS = 900
END_SECONDS = 30


@cache
def build_service(images: Images) -> Root:
    """Build a bento with the `fast` weights, and the service's image with it."""
    home = images.work / "bentoml"
    command = [sys.executable, "-m", "tilewise", "build", "--model", "fast"]
    tag = run(*command, env=os.environ | {"BENTOML_HOME": str(home)}).splitlines()[-1]
    return images.build("service", bento=home / "bentos" / tag.replace(":", "/"))


@cache
def build_mlflow(images: Images) -> Root:
    """Build the image of MLflow's server."""
    return images.build("mlflow")


def inspect(images: Images, name: str, root: Root) -> int:
    """Print an image's size, list its packages, check what it must not hold; return the size in MB."""
    whole, base, packages = (
        size_of(path) for path in (root.folder, images.root(BASE).folder, root.folder / "opt")
    )
    print(f"{name}: {whole} MB, of which the base {base} and /opt {packages} MB", flush=True)
    folders = [*root.folder.glob("usr/**/bin"), *root.folder.glob("opt/*/bin")]
    held = sorted({word for word in FORBIDDEN for folder in folders if (folder / word).exists()})
    if held:
        sys.exit(f"{name} holds {', '.join(held)}")
    print(f"  no {', '.join(FORBIDDEN)}; user {root.user}", flush=True)
    write_sbom(name, root)
    return whole


def try_service(images: Images) -> None:
    """Let the service do all that it uses its packages for, and end it as an orchestrator does."""
    root = build_service(images)
    if inspect(images, "service", root) > MAX_SERVICE_MB:
        sys.exit(f"service takes more than {MAX_SERVICE_MB} MB")
    (port,), kept = free_ports(1), own_folder(images, "predictions", root)
    settings = {"TILEWISE_WORKERS": "1", "TILEWISE_PREDICTIONS": "/var/lib/tilewise/predictions"}
    command = [*root.entrypoint, "--host", "127.0.0.1", "--port", str(port)]
    volumes = [Volume(kept, "/var/lib/tilewise")]
    url = f"http://127.0.0.1:{port}"
    with running("service", root.enter(command, settings, volumes), images.work, f"{url}/readyz") as process:
        classify_over_http(url, images.work)
        end_while_asked(process, url, images.work / "scene.tif")
    (log,) = (kept / "predictions").glob("predictions-*.parquet")
    print(f"  its prediction log has {pq.read_metadata(log).num_rows} rows (Parquet)")
    map_scene(root, own_folder(images, "maps", root))


def classify_over_http(url: str, work: Path) -> None:
    """Send a tile, a scene for each kind of answer, and a scene that becomes a task."""
    write_tile(synthesise_tile("Forest", 1, 1), work / "tile.tif")
    synthesise_scene(work / "scene.tif", 1, 3, 4)
    with Client(url) as client:
        (result,) = client.classify([work / "tile.tif"])
        windows = client.scene(work / "scene.tif")["features"]
        class_map = client.scene(work / "scene.tif", "image/tiff")
    print(
        f"  a tile is {result.class_name}; a scene: {len(windows)} windows, a map of {len(class_map)} bytes"
    )
    headers = {"Content-Type": "image/tiff", "Prefer": "respond-async"}
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        task = http.post("/scene", content=(work / "scene.tif").read_bytes(), headers=headers)
        state = await_task(http, task.headers["Location"])
    print(f"  a scene as a task: {state}")


def end_while_asked(process: subprocess.Popen[bytes], url: str, scene: Path) -> None:
    """Send SIGTERM while a scene is uploaded: it must be answered before the service ends."""
    content = scene.read_bytes()
    began = 0.0

    def body() -> Iterator[bytes]:
        nonlocal began
        yield content[: len(content) // 2]
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        time.sleep(0.5)
        yield content[len(content) // 2 :]

    headers = {"Content-Type": "image/tiff"}
    answer = httpx.post(f"{url}/scene", content=body(), headers=headers, trust_env=False, timeout=60)
    process.wait(END_SECONDS)
    if answer.status_code != httpx.codes.OK:
        sys.exit(f"a scene that was in work at SIGTERM got {answer.status_code}: {answer.text[:200]}")
    print(
        f"  SIGTERM in mid-upload: the scene is answered; the end came after {time.monotonic() - began:.1f} s"
    )


def await_task(http: httpx.Client, path: str) -> str:
    """Return the state in which a task ends, after at most a minute."""
    state = ""
    for _ in range(120):
        state = str(http.get(path).json()["status"])
        if state in ("done", "failed"):
            break
        time.sleep(0.5)
    if state != "done":
        sys.exit(f"the task is {state}")
    return state


def map_scene(root: Root, kept: Path) -> None:
    """Let the image map a scene, and read its table of windows."""
    synthesise_scene(kept / "scene.tif", 1, 3, 4)
    command = ["python", "-m", "tilewise.bento.batch", "/maps/scene.tif", "--out", "/maps/out"]
    run(*root.enter(command, {"PYTHONPATH": "/opt/bento/src"}, [Volume(kept, "/maps")]))
    (table,) = (kept / "out").glob("*.windows.parquet")
    metadata = pq.read_metadata(table)
    if b"geo" not in (metadata.metadata or {}):
        sys.exit(f"{table.name} is no GeoParquet")
    print(f"  `tilewise batch` in it writes {metadata.num_rows} windows (GeoParquet)")


def try_mlflow(images: Images) -> None:
    """Let MLflow's server answer its health check."""
    root = build_mlflow(images)
    inspect(images, "mlflow", root)
    (port,) = free_ports(1)
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        "sqlite:////tmp/mlflow.db",
        "--artifacts-destination",
        "/tmp/artifacts",  # noqa: S108 - the container's own
    ]
    with running("mlflow", root.enter(command), images.work, f"http://127.0.0.1:{port}/health"):
        print("  its server is healthy")


def try_training(images: Images) -> None:
    """Train a few steps on synthetic tiles, by the job's own command but on a CPU."""
    root = images.build("training", project=PROJECT)
    inspect(images, "training", root)
    volume = Volume(own_folder(images, "data", root), "/data")
    for command in (
        "data synth --out /data/raw/synthetic --tiles 12",
        "data pack /data/raw --out /data/packed",
    ):
        run(*root.enter(["tilewise", *command.split()], volumes=[volume]))
    began = time.monotonic()
    run(*root.enter(in_workdir(training_command()), volumes=[volume]), timeout=TRAINING_SECONDS)
    made = sorted(path.name for path in (volume.source / "runs/eurosat").glob("*.onnx"))
    seconds = time.monotonic() - began
    print(f"  the job's command trains on a CPU and exports {', '.join(made)} in {seconds:.0f} s")
    if not made:
        sys.exit("nothing was exported")


def training_command() -> list[str]:
    """Return the command of deploy/training-job.yaml, changed for a few steps on a CPU."""
    job = yaml.safe_load((DEPLOY / "training-job.yaml").read_text(encoding="utf-8"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    words = shlex.split(container["args"][0].replace("$MLFLOW_TRACKING_URI", "sqlite:////data/mlflow.db"))
    cpu = "--trainer.accelerator cpu --trainer.devices 1 --trainer.strategy auto --trainer.max_epochs 1"
    steps = "--trainer.limit_train_batches 3 --data.batch_size 16 --data.repeat {}"
    return [*words[1:], *cpu.split(), *steps.split(), "--tracking.artifacts", "/data/mlruns"]


def in_workdir(command: list[str]) -> list[str]:
    """Return the command as started in the folder that the image names."""
    return ["env", "--chdir=/tilewise", *command]


def own_folder(images: Images, name: str, root: Root) -> Path:
    """Return a new folder that belongs to an image's user."""
    folder = images.work / name
    folder.mkdir()
    os.chown(folder, *map(int, root.user.split(":")))
    return folder


def try_compose(images: Images) -> None:
    """Run deploy/compose.yaml as a whole, in a network and among processes of its own."""
    print("compose:", flush=True)
    roots = {
        "tilewise:latest": build_service(images),
        "tilewise-mlflow:latest": build_mlflow(images),
        "debian": make_stand_ins(images.work / "debian"),
    }
    description = images.work / "roots.json"
    description.write_text(json.dumps({name: root.to_json() for name, root in roots.items()}))
    enter = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run([*enter, sys.executable, DEPLOY / "compose.py", description], check=False)
    if done.returncode:
        sys.exit("the compose file does not work as a whole")


def write_sbom(name: str, root: Root) -> None:
    """Write the list of what an image holds, in CycloneDX."""
    packages = [*python_packages(root.folder), *debian_packages(root.folder)]
    target = OUT / f"{name}.cdx.json"
    components = [{"type": "library", "bom-ref": package["purl"], **package} for package in packages]
    bom = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}
    target.write_text(json.dumps(bom, indent=1) + "\n")
    print(f"  {len(packages)} packages are listed in {target.relative_to(PROJECT)}", flush=True)


def python_packages(root: Path) -> list[dict[str, str]]:
    """Return name, version and package URL of each package of Python in a root's /opt."""
    folders = [str(path) for path in root.glob("opt/*/lib/python*/site-packages")]
    found = {(one.name.lower().replace("_", "-"), one.version) for one in distributions(path=folders)}
    return [_package("pypi", name, version) for name, version in sorted(found)]


def debian_packages(root: Path) -> list[dict[str, str]]:
    """Return the same of each package of Debian in a root."""
    shown = ("--show", "--showformat=${Package} ${Version}\n")
    listed = run("dpkg-query", f"--admindir={root}/var/lib/dpkg", *shown)
    return [_package("deb/debian", *line.split()) for line in listed.splitlines()]


def _package(kind: str, name: str, version: str) -> dict[str, str]:
    return {"name": name, "version": version, "purl": f"pkg:{kind}/{name}@{quote(version)}"}


TRIES: dict[str, Callable[[Images], None]] = {
    "service": try_service,
    "mlflow": try_mlflow,
    "compose": try_compose,
    "training": try_training,
}


@one_line_errors
def main() -> None:
    """Build and try the images that the command line names."""
    names = sys.argv[1:] or list(TRIES)
    if unknown := set(names) - TRIES.keys():
        sys.exit(f"no image {', '.join(unknown)}; there are {', '.join(TRIES)}\n\n{__doc__}")
    need("buildah", "mmdebstrap", "unshare", "ip")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # after unmounting all
    OUT.mkdir(parents=True, exist_ok=True)
    with Images() as images:
        for name in names:
            TRIES[name](images)


if __name__ == "__main__":
    main()
