"""Packing keeps every pixel, tells data sets apart by a hash, and is whole or not there at all."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rasters import noise, write_folder, write_jpeg, write_l1c, write_tiff

from tilewise.datasets.core.bands import BAND_NAMES, EUROSAT_MS_ORDER, positions
from tilewise.datasets.core.errors import PackError, SplitError
from tilewise.datasets.packs.pack import Pack
from tilewise.datasets.packs.packing import write_pack
from tilewise.datasets.packs.splits import SplitMethod, SplitPlan
from tilewise.datasets.readers.sources import find_source

TILES = {f"{label}/{label}_{n}": 10 * place + n for place, label in enumerate(("A", "B")) for n in range(5)}
TILE_BYTES = 13 * 64 * 64 * 2


def pack_of(root: Path, out: Path, plan: SplitPlan = SplitPlan()) -> Pack:  # noqa: B008
    write_pack([find_source(root)], out, plan)
    return Pack(out)


def hash_of(*roots: Path, plan: SplitPlan = SplitPlan()) -> str:  # noqa: B008
    return write_pack([find_source(root) for root in roots], roots[0].parent / "pack", plan).data_hash


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of five tiles."""
    return write_folder(tmp_path / "data", TILES)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A pack of four other tiles, as it was before."""
    others = write_folder(tmp_path / "others", {f"{label}/{n}": 70 + n for label in "AB" for n in range(2)})
    return pack_of(others, tmp_path / "out" / "pack").root


# What is packed.


def test_a_packed_tile_is_what_the_reader_gives(tiles_folder: Path, pack: Pack) -> None:
    source = find_source(tiles_folder)
    files = source.files()
    assert pack.index["name"].to_pylist() == [file.name for file in files]
    assert len(pack) == 120
    for row in range(0, len(files), 7):
        assert np.array_equal(pack.fetch([row])[0], source.read(files[row].path).pixels)


def test_rgb_and_multispectral_tiles_go_into_one_pack(tmp_path: Path) -> None:
    ms, rgb = tmp_path / "EuroSAT_MS", tmp_path / "EuroSAT_RGB"
    bytes_of = np.random.default_rng(0).integers(0, 256, (20, 3, 64, 64), np.uint8)
    for n in range(10):
        label = "AB"[n % 2]
        write_tiff(ms / label / f"{n}.tif", noise(n)[positions(EUROSAT_MS_ORDER)], tags={})
        write_jpeg(rgb / label / f"{n}.jpg", bytes_of[n])
        write_jpeg(rgb / label / f"{n + 10}.jpg", bytes_of[n + 10])
    summary = write_pack([find_source(ms), find_source(rgb)], tmp_path / "pack", SplitPlan())
    assert (summary.tiles, summary.planes) == (30, 10 * 13 + 20 * 3)
    assert summary.sources == ("eurosat-ms", "eurosat-rgb")
    pack = Pack(tmp_path / "pack")
    assert (tmp_path / "pack" / "planes.u16").stat().st_size == summary.planes * 64 * 64 * 2
    for row, name in enumerate(pack.index["name"].to_pylist()):
        tile = pack.fetch([row])[0]
        if pack.sources[row] == "eurosat-ms":
            assert np.array_equal(tile, noise(int(name)))
        else:
            path = rgb / "AB"[int(name) % 2] / f"{name}.jpg"
            assert np.array_equal(tile, find_source(rgb).read(path).pixels)
            assert (tile.any(axis=(1, 2)) == np.isin(BAND_NAMES, ("B02", "B03", "B04"))).all()
    assert len(set(zip(pack.index["name"].to_pylist(), pack.splits.tolist(), strict=True))) == 20


def test_the_index_is_a_table_of_all_that_is_known(tmp_path: Path) -> None:
    write_l1c(tmp_path / "data" / "A" / "placed.tif", 1, corner=(500_000, 5_500_000))
    write_l1c(tmp_path / "data" / "B" / "unplaced.tif", 2)
    pack_of(tmp_path / "data", tmp_path / "pack")
    placed, unplaced = pq.read_table(tmp_path / "pack" / "index.parquet").to_pylist()
    assert (placed["name"], placed["label"], placed["bands"]) == ("placed", "A", list(BAND_NAMES))
    assert [placed[side] for side in ("left", "bottom", "right", "top")] == [
        500_000,
        5_499_360,
        500_640,
        5_500_000,
    ]
    assert [unplaced[side] for side in ("left", "bottom", "right", "top")] == [None] * 4
    assert (placed["crs"], unplaced["crs"]) == ("EPSG:32632", "")
    assert (placed["first_plane"], unplaced["first_plane"]) == (0, 13)


def test_a_pack_of_synthetic_tiles_says_so(pack: Pack, root: Path, tmp_path: Path) -> None:
    assert pack.summary.synthetic
    assert pack.summary.counts["train"] == dict.fromkeys(pack.summary.classes, 7)
    assert not pack_of(root, tmp_path / "pack").summary.synthetic


# The hash.


def test_the_hash_is_the_same_for_the_same_tiles_in_any_order(tmp_path: Path) -> None:
    one = write_folder(tmp_path / "one", {name: seed for name, seed in TILES.items() if seed % 2})
    two = write_folder(tmp_path / "two", {name: seed for name, seed in TILES.items() if not seed % 2})
    every = write_folder(tmp_path / "every", TILES)
    assert hash_of(one, two) == hash_of(two, one) == hash_of(every)


def test_the_hash_changes_with_a_pixel_a_name_a_class_and_a_split(root: Path) -> None:
    hashes = [hash_of(root)]
    hashes.append(hash_of(root, plan=SplitPlan(seed=1)))
    pixels = noise(3)
    pixels[0, 0, 0] += 1
    write_tiff(root / "A" / "A_3.tif", pixels, BAND_NAMES)
    hashes.append(hash_of(root))
    (root / "A" / "A_3.tif").rename(root / "A" / "A_5.tif")
    hashes.append(hash_of(root))
    everything_trains = SplitPlan(fractions=(1.0, 0.0, 0.0))
    hashes.append(hash_of(root, plan=everything_trains))
    (root / "A" / "A_5.tif").rename(root / "B" / "A_5.tif")
    hashes.append(hash_of(root, plan=everything_trains))
    assert len(set(hashes)) == len(hashes)


# What cannot be packed.


def test_an_unreadable_tile_stops_packing_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    (root / "B" / "B_2.tif").write_bytes(b"II*\0")
    with pytest.raises(PackError, match=r"^B_2: a truncated or corrupt GeoTIFF; .*validate"):
        pack_of(root, tmp_path / "out" / "pack")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_old_pack_stays_when_packing_fails(root: Path, old: Path) -> None:
    before = content(old)
    (root / "B" / "B_2.tif").write_bytes(b"")
    with pytest.raises(PackError, match="B_2: an empty file"):
        pack_of(root, old)
    assert content(old) == before
    assert [path.name for path in old.parent.iterdir()] == ["pack"]


def test_an_old_pack_stays_when_packing_is_stopped(root: Path, old: Path) -> None:
    def stop(_step: str, done: int, _total: int | None) -> None:
        if done == 7:
            raise KeyboardInterrupt

    before = content(old)
    with pytest.raises(KeyboardInterrupt):
        write_pack([find_source(root)], old, SplitPlan(), stop)
    assert content(old) == before
    assert [path.name for path in old.parent.iterdir()] == ["pack"]


def test_a_new_pack_takes_the_place_of_the_old_one(root: Path, old: Path) -> None:
    (old.parent / ".pack.partial").mkdir()  # as a killed run leaves it
    (old.parent / ".pack.partial" / "planes.u16").write_bytes(b"half")
    opened = Pack(old)
    assert len(pack_of(root, old)) == 10
    assert [path.name for path in old.parent.iterdir()] == ["pack"]
    assert np.array_equal(opened.fetch([0])[0], noise(70))  # who reads the old one can go on


def test_packing_never_deletes_what_is_no_pack(root: Path, tmp_path: Path) -> None:
    for out in (root, tmp_path, root / "A"):
        with pytest.raises(PackError, match="exists and is not a pack"):
            pack_of(root, out)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PackError, match="exists and is not a pack"):
        pack_of(root, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert len(find_source(root).files()) == 10


def test_a_pack_may_go_into_an_empty_folder_or_the_one_we_are_in(root: Path, in_folder: Path) -> None:
    out = in_folder / "empty"
    out.mkdir()
    assert len(pack_of(root, out)) == 10
    inside = in_folder / "inside"
    inside.mkdir()
    os.chdir(inside)
    write_pack([find_source(root)], Path(), SplitPlan())
    assert len(Pack(inside)) == 10


def test_a_pack_may_be_a_link_to_a_folder_elsewhere(root: Path, old: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(old, target_is_directory=True)
    assert len(pack_of(root, link)) == 10
    assert link.is_symlink()
    assert len(Pack(old)) == 10


def test_a_plan_that_cannot_be_is_said_before_any_tile_is_read(root: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    for plan in (SplitPlan(fractions=(0.5, 0.5, 0.5)), SplitPlan(SplitMethod.LISTS, tmp_path / "none")):
        with pytest.raises(SplitError):
            write_pack(
                [find_source(root)], tmp_path / "out" / "pack", plan, lambda _, done, __: seen.append(done)
            )
    assert seen == []
    assert not (tmp_path / "out").exists()


def test_a_split_that_does_not_fit_the_tiles_leaves_nothing(root: Path, tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="no coordinates"):
        pack_of(root, tmp_path / "out" / "pack", SplitPlan(SplitMethod.SPATIAL))
    assert list((tmp_path / "out").iterdir()) == []


# Full disks, real ones.


def run_pack(root: Path, out: Path, max_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if max_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))

    command = [sys.executable, "-m", "tilewise", "data", "pack", str(root), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, preexec_fn=limit)


def assert_out_of_space(done: subprocess.CompletedProcess[str], out: Path) -> None:
    # Once in some hundred runs a library's thread aborts the interpreter after all is said and undone.
    aborted = "terminate called without an active exception"
    errors = [line for line in done.stderr.splitlines() if not line.startswith(("packing: ", aborted))]
    assert errors == [f"error: {out}: no space left on the disk while packing; free some and pack again"]
    assert done.returncode == (-signal.SIGABRT if aborted in done.stderr else 1)


@pytest.mark.parametrize("max_bytes", [0, 4096, 3 * TILE_BYTES, 10 * TILE_BYTES - 1])
def test_a_file_size_limit_ends_packing_with_one_line(root: Path, old: Path, max_bytes: int) -> None:
    before = content(old)
    assert_out_of_space(run_pack(root, old, max_bytes), old)
    assert content(old) == before
    assert [path.name for path in old.parent.iterdir()] == ["pack"]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    """A folder to mount a small file system on; unmounted afterwards."""
    folder = tmp_path / "disk"
    folder.mkdir()
    yield folder
    subprocess.run(["umount", str(folder)], check=False, capture_output=True)


@pytest.mark.parametrize(
    ("room", "while_writing"),
    [(100_000, "planes"), (10 * TILE_BYTES + 4096, "index"), (10 * TILE_BYTES + 20_480, "statistics")],
)
def test_a_full_disk_ends_packing_with_one_line(
    root: Path, mount: Path, room: int, while_writing: str
) -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(mount)]
    if not shutil.which("mount") or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    done = run_pack(root, mount / "pack")
    assert_out_of_space(done, mount / "pack")
    assert ("packing: 10 of 10" in done.stderr) == (while_writing != "planes")
    assert list(mount.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_pack(root, tmp_path / "file" / "pack")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"error: {tmp_path}/file/pack: cannot be written: Not a directory"]
