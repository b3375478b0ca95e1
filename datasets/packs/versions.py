"""What changed between two versions of the data: tiles, classes, and the values of each band."""

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
from tilewise.datasets.packs.statistics import MIN_SHARE, SHIFTED, STABLE, distances, psi, shares

if TYPE_CHECKING:
    from pyarrow import Table

Read = Callable[[str], bytes]
"""Given the name of one of a pack's files, returns its bytes."""


@dataclass(frozen=True, slots=True)
class Version:
    """A pack as it was at one time.

    Attributes:
        said: how the user named it: a folder or a revision.
        summary: what its `pack.json` says.
        index: its index, one row a tile.
        edges: of the histograms, in DN.
        bands: the statistics of its train split, by band (see `tilewise.datasets.packs.statistics.BandStatistics`).
    """

    overrides: str
    summary: PackSummary
    index: Table
    edges: tuple[int, ...]
    bands: dict[str, dict[str, Any]]


def open_version(overrides: str, pack: Path = Path("data/packed"), repository: Path = Path()) -> Version:
    """Return the version that is in the folder `said`, or that `pack` was at the git revision `said`.

    Args:
        pack: where the pack is in the repository.
        repository: a folder in the working tree.

    Raises:
        VersionError: neither a pack nor a revision, or its bytes are nowhere.
        PackError: the pack is not whole or of another version.
    """
    if (Path(overrides) / CARD).is_file():
        return _parse(overrides, lambda name: _read_local(Path(overrides) / name))
    return _parse(overrides, _reader_at(overrides, pack, repository))


def _parse(overrides: str, read: Read) -> Version:
    summary = parse_summary(read(CARD), overrides)
    index = parse_index(read(INDEX), overrides)
    try:
        statistics = json.loads(read(STATISTICS))
        bands = {band["band"]: band for band in statistics["bands"]}
        return Version(overrides, summary, index, tuple(statistics["edges"]), bands)
    except (ValueError, KeyError, TypeError) as error:
        raise PackError(f"{overrides}/{STATISTICS}: not what tilewise writes; pack again") from error


def _read_local(path: Path) -> bytes:
    if not path.is_file():
        raise PackError(f"{path}: missing; pack again with `tilewise data pack`")
    return path.read_bytes()


def _reader_at(revision: str, pack: Path, repository: Path) -> Read:
    """Return what reads the files of the pack at a revision, through DVC."""
    try:
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException
        from dvc.scm import RevError, SCMError
        from dvc_data.index import DataIndexDirError
    except ImportError as error:
        raise TilewiseError("versions are read by DVC; pip install 'tilewise[ops]'") from error
    files = DVCFileSystem(str(repository), rev=revision)

    def read(name: str) -> bytes:
        path = (pack / name).as_posix()
        try:
            return bytes(files.cat_file(path))
        except RevError:
            raise VersionError(f"{revision}: neither a pack nor a revision; `git log` lists some") from None
        except SCMError as error:
            raise VersionError(f"{revision}: no pack is there, and {error}; name two packs, or --repo") from error
        except FileNotFoundError as error:
            raise VersionError(
                f"{revision}: it has no {path}, or neither cache nor remote holds it; "
                "`dvc push` where it was made, or say where packs are with --pack"
            ) from error
        except (DvcException, DataIndexDirError, OSError) as error:
            why = error.__cause__ or error  # of a remote that refuses, DVC says no more than that it failed
            raise VersionError(f"{revision}: {path} cannot be had ({why}); see `dvc remote list`") from error

    return read


_EXAMPLES = 10
Key = tuple[str, str]
"""The source and name of a tile: what makes it the same in two versions."""
Tiles = dict[Key, dict[str, str]]


@dataclass(frozen=True, slots=True)
class Change:
    """A tile that is in both versions, and is now something else: its class or its split."""

    source: str
    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class ClassChange:
    """How many tiles a class had and has, and their share (0-1) of all."""

    name: str
    before: int
    after: int
    share_before: float
    share_after: float


@dataclass(frozen=True, slots=True)
class BandChange:
    """How a band's values in the train split changed.

    Attributes:
        band: canonical name.
        before, after: tiles, mean and std (DN), and share of no data (0-1).
        psi, kl, wasserstein: see `tilewise.datasets.packs.statistics`; None where one of the versions has no such band, or counted it
            between other edges.
    """

    band: str
    before: dict[str, float]
    after: dict[str, float]
    psi: float | None
    kl: float | None
    wasserstein: float | None


@dataclass(frozen=True, slots=True)
class PackDiff:
    """Everything that two versions differ in.

    Attributes:
        before, after: how the versions were named, their data hashes and numbers of tiles.
        added, removed: (source, name) of tiles in one version only.
        relabelled: tiles with another class.
        moved: tiles in another split.
        repainted: tiles with other pixels or bands.
        classes: every class of either version.
        class_psi: population stability index of the class balance.
        bands: every band of either version.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    added: list[Key]
    removed: list[Key]
    relabelled: list[Change]
    moved: list[Change]
    repainted: list[Key]
    classes: list[ClassChange]
    class_psi: float
    bands: list[BandChange]

    @property
    def is_empty(self) -> bool:
        """Whether both versions hold the same tiles, with the same classes, splits and pixels."""
        return not (self.added or self.removed or self.relabelled or self.moved or self.repainted)

    @property
    def max_drift(self) -> tuple[str, float]:
        """The band that drifted most, and its PSI."""
        known = {band.band: band.psi for band in self.bands if band.psi is not None}
        return max(known.items(), key=lambda item: item[1], default=("", 0.0))


def compare(before: Version, after: Version) -> PackDiff:
    """Return what changed from one version to the next."""
    old, new = _tiles(before), _tiles(after)
    both = [key for key in old if key in new]
    classes = _compare_classes(before, after)
    return PackDiff(
        before=_facts(before),
        after=_facts(after),
        added=sorted(new.keys() - old.keys()),
        removed=sorted(old.keys() - new.keys()),
        relabelled=_changes(both, old, new, "label"),
        moved=_changes(both, old, new, "split"),
        repainted=[key for key in both if old[key]["sha256"] != new[key]["sha256"]],
        classes=classes,
        class_psi=_class_psi(classes),
        bands=[found for band in BAND_NAMES if (found := _compare_band(band, before, after))],
    )


def verdict(value: float) -> str:
    """Return what a PSI means, by custom."""
    return "stable" if value < STABLE else "changed" if value < SHIFTED else "shifted"


def write_diff(diff: PackDiff, folder: Path) -> None:
    """Write `diff.json`, which names every tile, and `diff.md` for people, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "diff.json").write_text(json.dumps(asdict(diff), indent=1) + "\n", encoding="utf-8")
    (folder / "diff.md").write_text(as_markdown(diff), encoding="utf-8")


def as_markdown(diff: PackDiff) -> str:
    """Return the differences as a page."""
    lines = [f"# {diff.before['said']} → {diff.after['said']}", ""]
    lines += [f"{side['said']}: {side['tiles']:,} tiles, data hash {side['data_hash'][:12]}." for side in _sides(diff)]
    lines += ["", *(f"- {line}" for line in in_words(diff)), ""]
    lines += ["| class | before | after | share before | share after |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {c.name} | {c.before} | {c.after} | {c.share_before:.1%} | {c.share_after:.1%} |" for c in diff.classes
    ]
    lines += ["", f"Class balance: PSI {diff.class_psi:.3f}, {verdict(diff.class_psi)}.", ""]
    lines += ["Bands, over the train split, in DN (reflectance × 10 000):", ""]
    lines += ["| band | mean | std | no data | PSI | KL | Wasserstein (DN) |", "|---|---|---|---|---:|---:|---:|"]
    lines += ["| " + " | ".join(band_cells(band)) + " |" for band in diff.bands]
    return "\n".join(lines) + "\n"


def in_words(diff: PackDiff) -> list[str]:
    """Return what happened to the tiles, a line for each kind of change, with a few names."""
    kinds: list[tuple[str, list[str]]] = [
        ("added", [name for _, name in diff.added]),
        ("removed", [name for _, name in diff.removed]),
        ("relabelled", [f"{c.name} {c.before} → {c.after}" for c in diff.relabelled]),
        ("in another split", [f"{c.name} {c.before} → {c.after}" for c in diff.moved]),
        ("with other pixels", [name for _, name in diff.repainted]),
    ]
    return [_told(kind, names) for kind, names in kinds if names] or ["the same tiles, classes, splits and pixels"]


def band_cells(band: BandChange) -> list[str]:
    """Return a band's row of a table, as text."""
    pairs = [("mean", "{:.1f}"), ("std", "{:.1f}"), ("no_data", "{:.2%}")]
    told = [f"{form.format(band.before[key])} → {form.format(band.after[key])}" for key, form in pairs]
    if band.psi is None or band.kl is None or band.wasserstein is None:
        return [band.band, *told, "–", "–", "–"]
    return [band.band, *told, f"{band.psi:.3f} {verdict(band.psi)}", f"{band.kl:.3f}", f"{band.wasserstein:.1f}"]


def _tiles(version: Version) -> Tiles:
    """Return {(source, name): label, split and hash}; a name under two classes of one source is told by both."""
    rows = version.index.select(["source", "name", "label", "split", "sha256"]).to_pylist()
    count = Counter((row["source"], row["name"]) for row in rows)
    return {
        (row["source"], row["name"] if count[row["source"], row["name"]] == 1 else f"{row['label']}/{row['name']}"): row
        for row in rows
    }


def _changes(both: list[Key], old: Tiles, new: Tiles, what: str) -> list[Change]:
    return [Change(*key, old[key][what], new[key][what]) for key in both if old[key][what] != new[key][what]]


def _facts(version: Version) -> dict[str, Any]:
    return {"said": version.overrides, "data_hash": version.summary.data_hash, "tiles": version.summary.tiles}


def _sides(diff: PackDiff) -> tuple[dict[str, Any], dict[str, Any]]:
    return diff.before, diff.after


def _compare_classes(before: Version, after: Version) -> list[ClassChange]:
    old, new = (Counter(version.index["label"].to_pylist()) for version in (before, after))
    return [
        ClassChange(name, old[name], new[name], old[name] / max(old.total(), 1), new[name] / max(new.total(), 1))
        for name in sorted(old.keys() | new.keys())
    ]


def _class_psi(classes: list[ClassChange]) -> float:
    before, after = (np.array([getattr(c, side) for c in classes], np.int64) for side in ("before", "after"))
    return psi(shares(after, MIN_SHARE), shares(before, MIN_SHARE)) if before.any() and after.any() else 0.0


def _compare_band(name: str, before: Version, after: Version) -> BandChange | None:
    old, new = before.bands.get(name), after.bands.get(name)
    if not (old and new and (old["tiles"] or new["tiles"])):
        return None
    counts = [np.asarray(band["histogram"], np.int64) for band in (new, old)]
    comparable = before.edges == after.edges and all(count.any() for count in counts)
    found = distances(counts[0], counts[1], before.edges) if comparable else dict.fromkeys(("psi", "kl", "wasserstein"))
    keys = ("tiles", "mean", "std", "no_data")
    return BandChange(name, {key: old[key] for key in keys}, {key: new[key] for key in keys}, **found)


def _told(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - _EXAMPLES:,} more" if len(names) > _EXAMPLES else ""
    return f"{len(names):,} {kind}: {', '.join(names[:_EXAMPLES])}{more}"
