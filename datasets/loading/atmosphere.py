"""Simulate Level-2A from Level-1C: labels are of Level-1C tiles, and most users hold Level-2A.
Over a uniform Lambertian surface, reflectance at the top of the atmosphere is ρ_toa = ρ_path + T ρ_surface,
where ρ_path is the reflectance of the air itself and T the transmittance both ways (Vermote et al. 1997,
"Second simulation of the satellite signal in the solar spectrum, 6S", doi:10.1109/36.581987, without its
small spherical-albedo term). A processor to Level-2A solves that for ρ_surface; here it is solved with drawn
ρ_path and T.

The means below are of a mid-latitude summer with continental aerosol of optical thickness 0.1 to 0.3 at 550
nm and the sun at 30 to 50 degrees: Rayleigh scattering falls as λ⁻⁴ from 0.1 at 443 nm, aerosols as about
λ⁻¹. Water vapour takes two thirds of band 9. Band 10 sees no ground, and Level-2A does not have it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tilewise.datasets.core.bands import BAND_NAMES, positions
from tilewise.datasets.core.radiometry import QUANTIFICATION
from tilewise.datasets.core.tile import has_data
from tilewise.datasets.loading.draws import Draws

PATH_REFLECTANCE = {
    "B01": 0.102, "B02": 0.076, "B03": 0.045, "B04": 0.028, "B05": 0.023, "B06": 0.018, "B07": 0.015,
    "B08": 0.013, "B8A": 0.011, "B09": 0.005, "B10": 0.0, "B11": 0.002, "B12": 0.001,
}  # fmt: skip
TRANSMITTANCE = {
    "B01": 0.80, "B02": 0.84, "B03": 0.87, "B04": 0.90, "B05": 0.89, "B06": 0.91, "B07": 0.92,
    "B08": 0.92, "B8A": 0.95, "B09": 0.35, "B10": 1.0, "B11": 0.94, "B12": 0.93,
}  # fmt: skip


@dataclass(frozen=True)
class AtmosphereOptions:
    """How often, and with what spread, Level-1C tiles become Level-2A in training.

    Attributes:
        fraction: fraction of tiles (0–1).
        path: smallest and largest factor of the path reflectance common to all bands of a tile (clean to hazy
            air, and a processor that removes too little or too much).
        band_path: standard deviation of the logarithm of a factor of each band's path reflectance.
        band_transmittance: the same of each band's transmittance.
    """

    fraction: float = 0.4
    path: tuple[float, float] = (0.75, 1.1)
    band_path: float = 0.08
    band_transmittance: float = 0.06


class Atmosphere(nn.Module):
    """Remove the atmosphere from a fraction of the tiles.

    A tile that has band 11 and lacks band 10 is Level-2A already, and stays as it is.
    """

    _path: Tensor
    _transmittance: Tensor
    _kept: Tensor

    def __init__(self, options: AtmosphereOptions) -> None:
        super().__init__()
        self._options = options
        kept = torch.ones(len(BAND_NAMES))
        kept[positions(["B10"])] = 0
        for name, values in (
            ("_path", torch.tensor([PATH_REFLECTANCE[b] for b in BAND_NAMES])),
            ("_transmittance", torch.tensor([TRANSMITTANCE[b] for b in BAND_NAMES])),
            ("_kept", kept),
        ):
            self.register_buffer(name, values.view(-1, 1, 1))

    def forward(self, tiles: Tensor, draws: Draws) -> Tensor:
        """Return tiles float32 DN (batch, 13, height, width), some as their Level-2A would be."""
        options, bands = self._options, len(BAND_NAMES)
        chosen = (draws.uniform(1, 1, 1) < options.fraction) & ~_is_level_2a(tiles)
        air = draws.between(*options.path, 1, 1, 1) * (draws.normal(bands, 1, 1) * options.band_path).exp()
        passed = self._transmittance * (draws.normal(bands, 1, 1) * options.band_transmittance).exp()
        surface = (tiles - self._path * air * QUANTIFICATION) / passed
        surface = torch.where(has_data(tiles), surface.clamp(min=1.0), 0.0) * self._kept
        return torch.where(chosen, surface, tiles)


def _is_level_2a(tiles: Tensor) -> Tensor:
    """Return bool (batch, 1, 1, 1)."""
    ten, eleven = positions(["B10", "B11"])
    present = has_data(tiles[:, [ten, eleven]].amax(dim=(2, 3)))
    return (present[:, 1] & ~present[:, 0])[:, None, None, None]
