"""Published weights in the formats of timm and torchgeo, used band by band and on their own scale."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tilewise.datasets.core.bands import BAND_NAMES, BAND_SETS, RGB_BANDS, positions
from tilewise.datasets.core.errors import TrainingError
from tilewise.models.network.classifier import Classifier
from tilewise.models.network.pretrained import PretrainedBackbone, PretrainedOptions

timm = pytest.importorskip("timm")

NAME = "test_efficientnet"  # timm's own small networks, for tests
STEM = "conv_stem"
GAIN = 0.226 / (sum(timm.get_pretrained_cfg(NAME).std) / 3)  # ImageNet varies by 0.226
MEAN, STD = [1000.0 + 10 * n for n in range(13)], [300.0 + 5 * n for n in range(13)]


def published(bands: int = 3, name: str = NAME) -> nn.Module:
    """Return a network as its publisher has it, with statistics that differ from the initial ones."""
    torch.manual_seed(1)
    network: nn.Module = timm.create_model(name, in_chans=bands, num_classes=7)
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randn(8, bands, 64, 64))
    return network.eval()


def saved(network: nn.Module, path: Path, wrapped: str | None = None, prefix: str = "") -> str:
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    torch.save({wrapped: state} if wrapped else state, path)
    return str(path)


def loaded(weights: str, name: str = f"timm/{NAME}", **options: object) -> PretrainedBackbone:
    backbone = PretrainedBackbone(name, PretrainedOptions(weights=weights, **options))  # type: ignore[arg-type]
    classifier = Classifier(backbone, 4, MEAN, STD)
    backbone.load(classifier.preprocess.scale, classifier.preprocess.shift)
    return backbone.eval()


def tile_with(bands: tuple[str, ...], pixels: Tensor) -> Tensor:
    tiles = torch.zeros(len(pixels), 13, *pixels.shape[2:])
    tiles[:, positions(bands)] = pixels
    return tiles


@pytest.mark.parametrize(
    ("wrapped", "prefix"), [(None, ""), ("state_dict", "module."), ("model", "backbone.")]
)
def test_a_tile_of_three_bands_is_answered_as_the_publisher_s_network_answers_a_photo(
    tmp_path: Path, wrapped: str | None, prefix: str
) -> None:
    network = published()
    photo = torch.randn(5, 3, 64, 64)  # red, green, blue
    backbone = loaded(saved(network, tmp_path / "weights.pth", wrapped, prefix))
    expected = network.forward_head(network.forward_features(photo * GAIN), pre_logits=True)
    torch.testing.assert_close(backbone(tile_with(RGB_BANDS, photo)), expected, atol=1e-3, rtol=1e-3)


def test_red_is_not_blue(tmp_path: Path) -> None:
    backbone = loaded(saved(published(), tmp_path / "weights.pth"))
    photo = torch.randn(5, 3, 64, 64)
    right, wrong = (backbone(tile_with(bands, photo)) for bands in (RGB_BANDS, RGB_BANDS[::-1]))
    assert (right - wrong).abs().max() > 0.01


def test_bands_without_weights_share_the_mean_filter(tmp_path: Path) -> None:
    network = published()
    backbone = loaded(saved(network, tmp_path / "weights.pth"))
    kernel = backbone.network.get_parameter(f"{STEM}.weight")
    others = [name for name in BAND_NAMES if name not in RGB_BANDS]
    together = kernel[:, positions(others)].sum(1)
    expected = network.get_parameter(f"{STEM}.weight").mean(1) * GAIN
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-3)


def test_sentinel_2_weights_get_their_bands_by_name_as_reflectance(tmp_path: Path) -> None:
    """As torchgeo has it: all 13 bands, DN / 10000, its own order of bands."""
    network = published(13, "test_resnet")
    shuffled = [*BAND_NAMES[::-1]]
    backbone = loaded(
        saved(network, tmp_path / "weights.pth"),
        "timm/test_resnet",
        bands=shuffled,
        scale="reflectance",
    )
    classifier = Classifier(backbone, 4, MEAN, STD).eval()
    level = 1100.0
    tiles = torch.full((2, 13, 64, 64), level) + 50 * torch.arange(13).view(1, 13, 1, 1)
    expected_input = (tiles / 10_000)[:, positions(shuffled)]
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    own = next(m for m in backbone.modules() if isinstance(m, nn.Conv2d))
    normalised = classifier.preprocess(tiles)
    inner = (
        slice(None),
        slice(None),
        slice(4, -4),
        slice(4, -4),
    )  # the edge is padded with means instead of 0
    torch.testing.assert_close(own(normalised)[inner], first(expected_input)[inner], atol=1e-4, rtol=1e-3)


def test_tiles_are_resampled_to_the_side_that_the_network_works_at(tmp_path: Path) -> None:
    network = published()
    backbone = loaded(saved(network, tmp_path / "weights.pth"), size=96)
    photo = torch.randn(3, 3, 64, 64)
    large = nn.functional.interpolate(photo, size=(96, 96), mode="bilinear", align_corners=False)
    expected = network.forward_head(network.forward_features(large * GAIN), pre_logits=True)
    torch.testing.assert_close(backbone(tile_with(RGB_BANDS, photo)), expected, atol=1e-3, rtol=1e-3)


def test_names_of_another_library_are_matched_in_order(tmp_path: Path) -> None:
    network = published()
    state = {
        f"layer_{n}": value
        for n, (name, value) in enumerate(network.state_dict().items())
        if not name.endswith("num_batches_tracked")
    }
    torch.save(state, tmp_path / "ported.pth")
    photo = tile_with(RGB_BANDS, torch.randn(3, 3, 64, 64))
    same = loaded(saved(network, tmp_path / "weights.pth"))
    torch.testing.assert_close(loaded(str(tmp_path / "ported.pth"))(photo), same(photo))


def test_safetensors_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network = published()
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "w.safetensors"
    )
    photo = tile_with(RGB_BANDS, torch.randn(3, 3, 64, 64))
    same = loaded(saved(network, tmp_path / "weights.pth"))
    torch.testing.assert_close(loaded(str(tmp_path / "w.safetensors"))(photo), same(photo))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"conv": Harmful()}, tmp_path / "weights.pth")
    with pytest.raises(TrainingError, match="no state dict of tensors alone"):
        loaded(str(tmp_path / "weights.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {}, "is neither timm/NAME nor torchgeo/NAME nor the path of a class"),
        ("timm/no_such_network", {}, "model.backbone: timm/no_such_network: "),
        pytest.param("torchgeo/unet", {}, "model.backbone: torchgeo/unet: ", marks=pytest.mark.slow),
        (f"timm/{NAME}", {"weights": "missing.pth"}, "missing.pth: there is no such file"),
        (
            "torchgeo/resnet18",
            {"weights": "ResNet18_Weights.NONE"},
            "torchgeo has no 'ResNet18_Weights.NONE'",
        ),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, str], message: str) -> None:
    if name.startswith("torchgeo"):
        pytest.importorskip("torchgeo")
    with pytest.raises(TrainingError) as refused:
        loaded(options.get("weights", "x.pth"), name)
    assert message in str(refused.value)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = saved(published(name="test_resnet"), tmp_path / "weights.pth")
    with pytest.raises(TrainingError, match="weights of another network"):
        loaded(path)


def test_weights_of_an_unknown_number_of_bands_ask_for_their_names(tmp_path: Path) -> None:
    path = saved(published(10), tmp_path / "weights.pth")
    with pytest.raises(
        TrainingError, match=r"takes 10 bands, but none are known; name them in model.pretrained"
    ):
        loaded(path)
    ten = [name for name in BAND_SETS["l2a"] if name not in ("B01", "B09")]
    assert loaded(path, bands=ten).features


@pytest.mark.slow  # importing torchgeo takes long
def test_a_weight_of_torchgeo_without_a_network_says_what_to_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchgeo")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(
        TrainingError, match=r"torchgeo cannot fetch .*resnet18_sentinel2_all_moco.* bring its file"
    ):
        loaded("ResNet18_Weights.SENTINEL2_ALL_MOCO", "torchgeo/resnet18")


def test_a_weight_of_timm_without_a_network_says_what_to_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # of the variable, read on import
    with pytest.raises(TrainingError, match=r"timm/resnet18 cannot fetch a1_in1k: .* bring its file"):
        loaded("a1_in1k", "timm/resnet18")


@pytest.mark.slow
def test_torchgeo_names_bands_and_scale_of_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weight's own table of bands and transforms, with tensors made here in place of the download."""
    models = pytest.importorskip("torchgeo.models")
    network = models.get_model("resnet18", weights=None, in_chans=13)
    weight = models.get_weight("ResNet18_Weights.SENTINEL2_ALL_MOCO")
    hub = tmp_path / "checkpoints"
    hub.mkdir()
    torch.save(network.state_dict(), hub / Path(weight.url).name)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    backbone = PretrainedBackbone("torchgeo/resnet18", PretrainedOptions(weights=str(weight)))
    classifier = Classifier(backbone, 4, MEAN, STD).eval()
    origin = backbone.load(classifier.preprocess.scale, classifier.preprocess.shift)
    assert "SENTINEL2_ALL_MOCO" in origin
    tiles = torch.full((1, 13, 64, 64), 1200.0)
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    own = next(m for m in backbone.modules() if isinstance(m, nn.Conv2d))
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(
        own(classifier.preprocess(tiles))[inner], first(tiles / 10_000)[inner], atol=1e-4, rtol=1e-3
    )
