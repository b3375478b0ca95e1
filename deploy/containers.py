"""Build images with buildah and run them with `chroot`, where there is no Docker.

    with Images() as images:
        root = images.build("mlflow")
        subprocess.run(root.enter(["mlflow", "--version"]))

A container has its own mounts, a read-only root, an empty `/tmp` and `/run`, no new privileges, and its
image's user and variables. It shares the network and the processes of its caller. Needs root, Debian's
buildah and mmdebstrap.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from stat import S_ISREG
from types import TracebackType
from typing import Any, NamedTuple, Self

DEPLOY = Path(__file__).resolve().parent
BASE = "docker.io/library/python:3.11-slim-bookworm"
# No manuals and translations, as in the official slim images; `usrmerge` would bring Perl.
_SLIM = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "locale", "info")]
_MERGED = ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "--include=usr-is-merged"]
# ROOT USER [SOURCE TARGET OPTIONS]… -- COMMAND…
_ENTER = """
set -e; root=$1 user=$2; shift 2
mount --bind "$root" "$root"; mount -o remount,ro,bind "$root"
for file in /etc/hosts /etc/resolv.conf; do mount --bind "$(readlink -f $file)" "$root$file"; done
for folder in /tmp /run; do mount -t tmpfs tmpfs "$root$folder"; done
mount -t proc proc "$root/proc"; mount --rbind /dev "$root/dev"
while [ "$1" != -- ]; do
  mount --bind "$1" "$root$2"; mount -o "remount,bind,$3" "$root$2"; shift 3
done; shift
exec setpriv --no-new-privs chroot --userspec "$user" --groups= "$root" "$@"
"""


class Volume(NamedTuple):
    """A folder of this machine inside a container; options as `mount` takes them, e.g. `ro`."""

    source: Path
    target: str
    options: str = "rw"


@dataclass(frozen=True)
class Root:
    """A folder with an image's files, and how the image wants to be run."""

    folder: Path
    user: str = "root:root"
    environment: Mapping[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()

    def enter(
        self,
        command: Sequence[str],
        variables: Mapping[str, str] | None = None,
        volumes: Sequence[Volume] = (),
        user: str | None = None,
    ) -> list[str]:
        """Return the command line that runs `command` in a container of this root.

        Args:
            variables: added to the image's own.
            user: USER:GROUP instead of the image's.
        """
        for path in ("etc/hosts", "etc/resolv.conf"):
            (self.folder / path).touch()
        for volume in volumes:
            (self.folder / volume.target.lstrip("/")).mkdir(parents=True, exist_ok=True)
        mounts = [word for volume in volumes for word in (str(volume.source), volume.target, volume.options)]
        enter = ["unshare", "--mount", "bash", "-c", _ENTER, "-", str(self.folder), user or self.user]
        return [*enter, *mounts, "--", *self._inner(command, variables or {})]

    def join(self, pid: int, command: Sequence[str], user: str | None = None) -> list[str]:
        """Return the command line that runs `command` in the running container of a process."""
        enter = ["nsenter", "--target", str(pid), "--mount", "chroot", "--userspec", user or self.user]
        return [*enter, "--groups=", str(self.folder), *self._inner(command, {})]

    def _inner(self, command: Sequence[str], variables: Mapping[str, str]) -> list[str]:
        environment = {"HOME": "/tmp", **self.environment, **variables}  # noqa: S108 - the container's own
        return ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *command]

    def to_json(self) -> dict[str, Any]:
        """Return the root JSON-ready, for another process."""
        return asdict(self) | {"folder": str(self.folder)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Root":
        """Return the root from what `to_json` returned."""
        return cls(
            Path(content["folder"]), content["user"], content["environment"], tuple(content["entrypoint"])
        )


class Images:
    """Images in a store of their own, which is removed at the end of the block."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="images-", ignore_cleanup_errors=True)
        self.work = Path(self._folder.name)
        driver = "overlay" if "overlay" in Path("/proc/filesystems").read_text() else "vfs"
        store = ("--root", self.work / "images", "--runroot", self.work / "run")
        self._buildah = ("buildah", "--storage-driver", driver, *store)

    def __enter__(self) -> Self:
        self.make_base()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for path in reversed([path for path in mounts if Path(path).is_relative_to(self.work)]):
            subprocess.run(["umount", "--lazy", path], check=False)
        self._folder.cleanup()

    def make_base(self) -> None:
        """Make Debian's Python under the name of the official image."""
        archive = self.work / "base.tar"
        bootstrap("python3,python3-venv,ca-certificates", archive)
        made = self._run("from", "scratch")
        self._run("add", "--quiet", made, archive, "/")
        self._run("run", "--isolation", "chroot", made, "--", "ln", "-sf", "python3", "/usr/bin/python")
        self._run("commit", "--quiet", "--rm", made, BASE)
        archive.unlink()

    def build(self, name: str, **contexts: Path) -> Root:
        """Build `tilewise-NAME` from deploy/NAME, and return its root.

        Args:
            contexts: further folders that its Dockerfile copies from, by name.
        """
        named = [word for key, path in contexts.items() for word in ("--build-context", f"{key}={path}")]
        self._run(
            "bud", "--quiet", "--isolation", "chroot", "--network", "host", *_index_mounts(), *named,
            "--tag", f"tilewise-{name}", DEPLOY / name,
        )  # fmt: skip
        return self.root(f"tilewise-{name}")

    def root(self, image: str) -> Root:
        """Return the root of a new container."""
        config = json.loads(self._run("inspect", "--type", "image", image))["OCIv1"]["config"]
        environment = dict(pair.split("=", 1) for pair in config.get("Env", ()))
        folder = Path(self._run("mount", self._run("from", image)))
        entrypoint = tuple(config.get("Entrypoint") or ())
        return Root(folder, config.get("User") or "root:root", environment, entrypoint)

    def _run(self, *arguments: object) -> str:
        return run(*self._buildah, *arguments)


def bootstrap(packages: str, target: Path) -> None:
    """Make a small Debian with `packages` (comma-separated) as a folder or an archive."""
    run(
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        *_MERGED,
        *_SLIM,
        f"--include={packages}",
        "bookworm",
        target,
    )


def run(*command: object, **options: Any) -> str:
    """Run a command and return what it printed; show that and end if it fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout.strip()


def size_of(folder: Path) -> int:
    """Return the size of a folder's files in MB (10⁶ bytes), as Docker counts: without folders and links."""
    files = [Path(path) / name for path, _, names in os.walk(folder) for name in names]
    found = {status.st_ino: status.st_size for path in files if S_ISREG((status := path.lstat()).st_mode)}
    return round(sum(found.values()) / 1e6)


def need(*programs: str) -> None:
    """End with what to install if a program is missing, or if the caller is not root."""
    if os.getuid() != 0:
        sys.exit("only root can mount an image's root")
    if missing := [program for program in programs if not shutil.which(program)]:
        sys.exit(
            f"not installed: {', '.join(missing)}; apt-get install buildah mmdebstrap util-linux iproute2"
        )


def _index_mounts() -> Iterator[str]:
    """Yield the options that lend a build this machine's package index; a Dockerfile names none."""
    yield from ("--volume", "/etc/ssl/certs:/etc/ssl/certs:ro")
    for path in (Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf"):
        if path.is_file():
            yield from ("--volume", f"{path}:/etc/pip.conf:ro")
