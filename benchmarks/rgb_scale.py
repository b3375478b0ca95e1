"""How EuroSAT's RGB bytes relate to the DN of the same tiles in EuroSAT MS: the evidence of
docs/decisions/0002.

    python benchmarks/rgb_scale.py data/raw/EuroSAT_MS data/raw/EuroSAT_RGB

Prints, per band: a line fitted to the mean of each tile that stands in both archives (tiles with saturated
pixels left out, since their bytes stop at 255), the median DN of some byte values, and the error of the rule
that the reader uses.
"""

import argparse
from pathlib import Path

import numpy as np
import rasterio

from tilewise.datasets.core.bands import RGB_BANDS, positions
from tilewise.datasets.readers.eurosat import read_ms, rgb_to_dn

BYTES = (30, 50, 80, 100, 128, 160, 200, 240)
SATURATED = 250


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ms", type=Path)
    parser.add_argument("rgb", type=Path)
    arguments = parser.parse_args()
    pairs = find_pairs(arguments.ms, arguments.rgb)
    print(f"{len(pairs)} tiles stand in both archives")
    stacks = [read_pair(*pair) for pair in pairs]
    for place, band in enumerate(RGB_BANDS):
        report(band, np.stack([rgb[place] for rgb, _ in stacks]), np.stack([dn[place] for _, dn in stacks]))


def find_pairs(ms: Path, rgb: Path) -> list[tuple[Path, Path]]:
    """Return the paths of tiles that stand in both folders under one name."""
    jpegs = {path.stem: path for path in rgb.glob("*/*.jpg")}
    return [(path, jpegs[path.stem]) for path in sorted(ms.glob("*/*.tif")) if path.stem in jpegs]


def read_pair(ms: Path, rgb: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return bytes and DN, both (3, 64, 64), of one place."""
    with rasterio.open(rgb) as dataset:
        return dataset.read(), read_ms(ms).pixels[positions(RGB_BANDS)]


def report(band: str, byte: np.ndarray, dn: np.ndarray) -> None:
    """Print what relates the bytes (n, 64, 64) of a band to its DN."""
    clear = (byte < SATURATED).all(axis=(1, 2))
    slope, intercept = np.polyfit(byte[clear].mean((1, 2)), dn[clear].mean((1, 2)), 1)
    inside = byte < SATURATED
    errors = np.abs(rgb_to_dn(byte)[inside].astype(float) - dn[inside])
    medians = "  ".join(
        f"{b}: {np.median(dn[byte == b]):.0f} ({rgb_to_dn(np.array([b], np.uint8))[0]})" for b in BYTES
    )
    print(f"\n{band}: DN = {slope:.3f} x byte {intercept:+.1f} over {clear.sum()} tiles' means")
    print(f"  median DN of a byte (the reader's DN): {medians}")
    print(
        f"  the reader's error: mean {errors.mean():.1f} DN, 95 % within {np.percentile(errors, 95):.0f} DN"
    )
    print(f"  bytes of 0: {(byte == 0).sum()}, of 255: {(byte == 255).mean():.2%}")


if __name__ == "__main__":
    main()
