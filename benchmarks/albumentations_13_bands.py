"""Which of Albumentations' transforms leave 13-band tiles sound: the evidence of docs/decisions/0003.

    python benchmarks/albumentations_13_bands.py

Each transform is tried on a tile of 13 bands as uint16 DN and as float32 reflectance, with a region of no
data and a bright cloud (reflectance 1.2). It is sound if the type and shape stay, the values stay what
reflectances can be, and the bright pixels are not cut off.
"""

import warnings

import albumentations as A  # noqa: N812 - its own convention
import numpy as np

GEOMETRY = {
    "D4": A.D4(p=1),
    "Affine": A.Affine(rotate=(20, 20), p=1),
    "RandomResizedCrop": A.RandomResizedCrop((64, 64), p=1),
    "ElasticTransform": A.ElasticTransform(p=1),
    "GridDistortion": A.GridDistortion(p=1),
    "CoarseDropout": A.CoarseDropout(p=1),
}
PHOTOMETRY = {
    "RandomBrightnessContrast": A.RandomBrightnessContrast(p=1),
    "RandomGamma": A.RandomGamma(p=1),
    "GaussNoise": A.GaussNoise(p=1),
    "AdditiveNoise": A.AdditiveNoise(p=1),
    "MultiplicativeNoise": A.MultiplicativeNoise(p=1),
    "GaussianBlur": A.GaussianBlur(p=1),
    "MedianBlur": A.MedianBlur(p=1),
    "Sharpen": A.Sharpen(p=1),
    "Downscale": A.Downscale(p=1),
    "SaltAndPepper": A.SaltAndPepper(p=1),
    "RandomShadow": A.RandomShadow(p=1),
    "RandomFog": A.RandomFog(p=1),
    "HueSaturationValue": A.HueSaturationValue(p=1),
    "ColorJitter": A.ColorJitter(p=1),
    "CLAHE": A.CLAHE(p=1),
    "ChannelDropout": A.ChannelDropout(p=1),
}


def make_tile() -> np.ndarray:
    """Return reflectance (64, 64, 13) with a cloud and a hole."""
    tile = np.random.default_rng(0).uniform(0.02, 0.4, (64, 64, 13)).astype(np.float32)
    tile[:16, :16] = 1.2
    tile[-16:, -16:] = 0.0
    return tile


def judge(transform: A.BasicTransform, image: np.ndarray, highest: float) -> str:
    """Return what became of `image`, in a few words."""
    try:
        found = A.Compose([transform], seed=0)(image=image.copy())["image"]
    except Exception as error:
        return f"raises {type(error).__name__}"
    if found.dtype != image.dtype or found.shape != image.shape:
        return f"gives {found.dtype} {found.shape}"
    if found.max() > highest * 1.6:
        return f"up to {found.max():.4g} from {image.max():.4g}"
    if found.max() < image.max() * 0.95:
        return f"cut to {found.max():.4g}"
    return "sound"


def main() -> None:
    warnings.simplefilter("ignore")
    reflectance = make_tile()
    dn = (reflectance * 10_000).astype(np.uint16)
    print(f"Albumentations {A.__version__}\n\n| transform | uint16 DN | float32 reflectance |\n|---|---|---|")
    for name, transform in {**GEOMETRY, **PHOTOMETRY}.items():
        print(f"| {name} | {judge(transform, dn, 12_000)} | {judge(transform, reflectance, 1.2)} |")


if __name__ == "__main__":
    main()
