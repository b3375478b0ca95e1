"""How EuroSAT's 20 and 60 m bands were brought to 10 m (docs/decisions/0009).

    python benchmarks/eurosat_resampling.py EuroSAT_MS.zip

A tile that was upsampled by a linear kernel lies in the space that the shifted kernels span, and that space
is much smaller than all tiles. For each kernel that GDAL has, and each phase of the coarse pixels, this
prints what is left of real tiles outside that space, in DN (root mean square, median over tiles): 0.2 to 0.3
is what rounding leaves.
"""

import sys
import zipfile

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from rasterio.warp import reproject

KERNELS = ("nearest", "bilinear", "cubic", "cubic_spline", "lanczos")
BANDS = {"B12 (20 m)": (12, 2), "B05 (20 m)": (5, 2), "B01 (60 m)": (1, 6), "B02 (10 m, for scale)": (2, 2)}
SIDE, TILES, EDGE = 64, 60, 4

Floats = npt.NDArray[np.float64]


def space(kernel: str, factor: int, phase: int) -> Floats:
    """Return an orthonormal basis (64, n) of the columns that the kernel makes of coarse pixels."""
    count = SIDE // factor + 10
    columns = []
    for place in range(count):
        coarse = np.zeros((9, count), np.float32)
        coarse[:, place] = 1
        fine = np.zeros((5, SIDE), np.float32)
        reproject(
            coarse,
            fine,
            src_transform=Affine(factor, 0, -4 * factor - phase, 0, -1, 0),
            dst_transform=Affine(1, 0, 0, 0, -1, -2),
            src_crs="EPSG:32631",
            dst_crs="EPSG:32631",
            resampling=Resampling[kernel],
        )
        columns.append(fine[2])
    basis, sizes, _ = np.linalg.svd(np.array(columns, np.float64).T, full_matrices=False)
    return basis[:, sizes > 1e-4]


def outside(basis: Floats, tile: Floats) -> float:
    left = (tile - basis @ (basis.T @ tile))[EDGE:-EDGE]
    return float(np.sqrt((left**2).mean()))


def main() -> None:
    spaces = {(k, f, p): space(k, f, p) for k in KERNELS for f in (2, 6) for p in range(f)}
    with zipfile.ZipFile(sys.argv[1]) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".tif"))
        chosen = np.random.default_rng(0).choice(names, TILES, replace=False)
        files = [archive.read(name) for name in chosen]
    print(f"{'':22}" + "".join(f"{kernel:>14}" for kernel in KERNELS))
    for label, (band, factor) in BANDS.items():
        found: dict[str, list[float]] = {kernel: [] for kernel in KERNELS}
        for content in files:
            with MemoryFile(content) as memory, memory.open() as dataset:
                tile = dataset.read(band).astype(np.float64)
            for kernel in KERNELS:
                found[kernel].append(min(outside(spaces[kernel, factor, p], tile) for p in range(factor)))
        print(f"{label:22}" + "".join(f"{np.median(found[kernel]):14.2f}" for kernel in KERNELS))


if __name__ == "__main__":
    main()
