"""Compare two versions of a pack, from folders or git revisions: tiles, classes and band values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.errors import PackError, TilewiseError, VersionError
from tilewise.datasets.packs.pack import CARD, INDEX, STATISTICS, PackSummary, parse_index, parse_summary
from tilewise.datasets.packs.statistics import MIN_FRACTION, SHIFTED, STABLE, distances, fractions, psi

if TYPE_CHECKING:
    from pyarrow import Table

Read = Callable[[str], bytes]
"""Given the name of one of a pack's files, returns its bytes."""
Key = tuple[str, str]
"""The source and name of a tile: what identifies it in two versions."""
Tiles = dict[Key, dict[str, str]]
_EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class Version:
    """A pack as it was at one time.

    Attributes:
        name: the folder or revision that the user named.
        summary: content of its `pack.json`.
        index: its index, one row a tile.
        edges: of the histograms, in DN.
        bands: the statistics of its train split, by band (see
            `tilewise.datasets.packs.statistics.BandStatistics`).
    """

    name: str
    summary: PackSummary
    index: Table
    edges: tuple[int, ...]
    bands: dict[str, dict[str, Any]]


def open_version(name: str, pack: Path = Path("data/packed"), repository: Path = Path()) -> Version:
    """Return the version in the folder `name`, or the one that `pack` had at the git revision `name`.

    Args:
        name: a folder or a git revision.
        pack: path of the pack in the repository.
        repository: a folder in the working tree.

    Raises:
        VersionError: `name` is neither a pack nor a revision, or no remote holds its bytes.
        PackError: the pack is incomplete, or of another version.
    """
    if (Path(name) / CARD).is_file():
        return _parse(name, lambda file: _read_local(Path(name) / file))
    return _parse(name, _reader_at(name, pack, repository))


def _parse(name: str, read: Read) -> Version:
    summary = parse_summary(read(CARD), name)
    index = parse_index(read(INDEX), name)
    try:
        statistics = json.loads(read(STATISTICS))
        bands = {band["band"]: band for band in statistics["bands"]}
        return Version(name, summary, index, tuple(statistics["edges"]), bands)
    except (ValueError, KeyError, TypeError) as error:
        raise PackError(f"{name}/{STATISTICS}: not written by tilewise; pack again") from error


def _read_local(path: Path) -> bytes:
    if not path.is_file():
        raise PackError(f"{path}: missing; pack again with `tilewise data pack`")
    return path.read_bytes()


def _reader_at(revision: str, pack: Path, repository: Path) -> Read:
    """Return a function that reads the pack's files at a revision, through DVC."""
    try:
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException
        from dvc.scm import RevError, SCMError
        from dvc_data.index import DataIndexDirError
    except ImportError as error:
        raise TilewiseError(
            "versions are read by DVC, which is not installed; pip install 'tilewise[ops]'"
        ) from error
    files = DVCFileSystem(str(repository), rev=revision)

    def read(name: str) -> bytes:
        path = (pack / name).as_posix()
        try:
            return bytes(files.cat_file(path))
        except RevError:
            raise VersionError(
                f"{revision}: neither a pack nor a revision; `git log` lists revisions"
            ) from None
        except SCMError as error:
            raise VersionError(f"{revision}: not a pack, and {error}; name two packs, or --repo") from error
        except FileNotFoundError as error:
            raise VersionError(
                f"{revision}: it has no {path}, or neither cache nor remote holds it; "
                "`dvc push` where it was made, or name the pack's path with --pack"
            ) from error
        except (DvcException, DataIndexDirError, OSError) as error:
            why = error.__cause__ or error  # DVC's own message only says that the remote failed
            raise VersionError(f"{revision}: {path} cannot be read ({why}); see `dvc remote list`") from error

    return read


@dataclass(frozen=True, slots=True)
class TileChange:
    """A tile that is in both versions, and whose class or split changed."""

    source: str
    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class ClassChange:
    """How many tiles a class had and has, and their fraction (0–1) of all tiles."""

    name: str
    before: int
    after: int
    fraction_before: float
    fraction_after: float


@dataclass(frozen=True, slots=True)
class BandChange:
    """How a band's values in the train split changed.

    Attributes:
        band: canonical name.
        before, after: tiles, mean and std (DN), and fraction of no data (0–1).
        psi, kl, wasserstein: see `tilewise.datasets.packs.statistics`; None where a version lacks the band,
            or has other histogram edges.
    """

    band: str
    before: dict[str, float]
    after: dict[str, float]
    psi: float | None
    kl: float | None
    wasserstein: float | None


@dataclass(frozen=True, slots=True)
class PackDiff:
    """All differences between two versions.

    Attributes:
        before, after: the versions' names, data hashes and numbers of tiles.
        added, removed: (source, name) of tiles in one version only.
        relabelled: tiles with another class.
        resplit: tiles in another split.
        changed_pixels: tiles with other pixels or bands.
        classes: every class of either version.
        class_psi: population stability index of the class balance.
        bands: every band of either version.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    added: list[Key]
    removed: list[Key]
    relabelled: list[TileChange]
    resplit: list[TileChange]
    changed_pixels: list[Key]
    classes: list[ClassChange]
    class_psi: float
    bands: list[BandChange]

    @property
    def is_empty(self) -> bool:
        """Whether both versions hold the same tiles, with the same classes, splits and pixels."""
        return not (self.added or self.removed or self.relabelled or self.resplit or self.changed_pixels)

    @property
    def max_drift(self) -> tuple[str, float]:
        """The band that drifted most, and its PSI."""
        known = {band.band: band.psi for band in self.bands if band.psi is not None}
        return max(known.items(), key=lambda item: item[1], default=("", 0.0))


def compare(before: Version, after: Version) -> PackDiff:
    """Return the differences from one version to the next."""
    old, new = _tiles(before), _tiles(after)
    both = [key for key in old if key in new]
    classes = _compare_classes(before, after)
    return PackDiff(
        before=_facts(before),
        after=_facts(after),
        added=sorted(new.keys() - old.keys()),
        removed=sorted(old.keys() - new.keys()),
        relabelled=_changes(both, old, new, "label"),
        resplit=_changes(both, old, new, "split"),
        changed_pixels=[key for key in both if old[key]["sha256"] != new[key]["sha256"]],
        classes=classes,
        class_psi=_class_psi(classes),
        bands=[found for band in BAND_NAMES if (found := _compare_band(band, before, after))],
    )


def verdict(value: float) -> str:
    """Return how a PSI is customarily rated."""
    return "stable" if value < STABLE else "changed" if value < SHIFTED else "shifted"


def write_diff(diff: PackDiff, folder: Path) -> None:
    """Write `diff.json`, which names every tile, and the readable `diff.md` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "diff.json").write_text(json.dumps(asdict(diff), indent=1) + "\n", encoding="utf-8")
    (folder / "diff.md").write_text(as_markdown(diff), encoding="utf-8")


def as_markdown(diff: PackDiff) -> str:
    """Return the differences as Markdown."""
    lines = [f"# {diff.before['name']} → {diff.after['name']}", ""]
    lines += [
        f"{side['name']}: {side['tiles']:,} tiles, data hash {side['data_hash'][:12]}."
        for side in (diff.before, diff.after)
    ]
    lines += ["", *(f"- {line}" for line in in_words(diff)), ""]
    lines += ["| class | before | after | fraction before | fraction after |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {c.name} | {c.before} | {c.after} | {c.fraction_before:.1%} | {c.fraction_after:.1%} |"
        for c in diff.classes
    ]
    lines += ["", f"Class balance: PSI {diff.class_psi:.3f}, {verdict(diff.class_psi)}.", ""]
    lines += ["Bands, over the train split, in DN (reflectance × 10 000):", ""]
    lines += [
        "| band | mean | std | no data | PSI | KL | Wasserstein (DN) |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    lines += ["| " + " | ".join(band_cells(band)) + " |" for band in diff.bands]
    return "\n".join(lines) + "\n"


def in_words(diff: PackDiff) -> list[str]:
    """Return how the tiles changed, a line for each kind of change, with a few names."""
    kinds: list[tuple[str, list[str]]] = [
        ("added", [name for _, name in diff.added]),
        ("removed", [name for _, name in diff.removed]),
        ("relabelled", [f"{c.name} {c.before} → {c.after}" for c in diff.relabelled]),
        ("in another split", [f"{c.name} {c.before} → {c.after}" for c in diff.resplit]),
        ("with other pixels", [name for _, name in diff.changed_pixels]),
    ]
    return [_counted(kind, names) for kind, names in kinds if names] or [
        "the same tiles, classes, splits and pixels"
    ]


def band_cells(band: BandChange) -> list[str]:
    """Return a band's row of a table, as text."""
    pairs = [("mean", "{:.1f}"), ("std", "{:.1f}"), ("no_data", "{:.2%}")]
    cells = [f"{form.format(band.before[key])} → {form.format(band.after[key])}" for key, form in pairs]
    if band.psi is None or band.kl is None or band.wasserstein is None:
        return [band.band, *cells, "–", "–", "–"]
    return [
        band.band,
        *cells,
        f"{band.psi:.3f} {verdict(band.psi)}",
        f"{band.kl:.3f}",
        f"{band.wasserstein:.1f}",
    ]


def _tiles(version: Version) -> Tiles:
    """Return {(source, name): label, split and hash}; a name in two classes includes its class."""
    rows = version.index.select(["source", "name", "label", "split", "sha256"]).to_pylist()
    count = Counter((row["source"], row["name"]) for row in rows)
    return {
        (
            row["source"],
            row["name"] if count[row["source"], row["name"]] == 1 else f"{row['label']}/{row['name']}",
        ): row
        for row in rows
    }


def _changes(both: list[Key], old: Tiles, new: Tiles, column: str) -> list[TileChange]:
    return [
        TileChange(*key, old[key][column], new[key][column])
        for key in both
        if old[key][column] != new[key][column]
    ]


def _facts(version: Version) -> dict[str, Any]:
    return {"name": version.name, "data_hash": version.summary.data_hash, "tiles": version.summary.tiles}


def _compare_classes(before: Version, after: Version) -> list[ClassChange]:
    old, new = (Counter(version.index["label"].to_pylist()) for version in (before, after))
    return [
        ClassChange(
            name, old[name], new[name], old[name] / max(old.total(), 1), new[name] / max(new.total(), 1)
        )
        for name in sorted(old.keys() | new.keys())
    ]


def _class_psi(classes: list[ClassChange]) -> float:
    before, after = (np.array([getattr(c, side) for c in classes], np.int64) for side in ("before", "after"))
    if not (before.any() and after.any()):
        return 0.0
    return psi(fractions(after, MIN_FRACTION), fractions(before, MIN_FRACTION))


def _compare_band(name: str, before: Version, after: Version) -> BandChange | None:
    old, new = before.bands.get(name), after.bands.get(name)
    if not (old and new and (old["tiles"] or new["tiles"])):
        return None
    counts = [np.asarray(band["histogram"], np.int64) for band in (new, old)]
    comparable = before.edges == after.edges and all(count.any() for count in counts)
    found = (
        distances(counts[0], counts[1], before.edges)
        if comparable
        else dict.fromkeys(("psi", "kl", "wasserstein"))
    )
    keys = ("tiles", "mean", "std", "no_data")
    return BandChange(name, {key: old[key] for key in keys}, {key: new[key] for key in keys}, **found)


def _counted(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - _EXAMPLES:,} more" if len(names) > _EXAMPLES else ""
    return f"{len(names):,} {kind}: {', '.join(names[:_EXAMPLES])}{more}"
