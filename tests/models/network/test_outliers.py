import numpy as np
import pytest
import torch

from tilewise.models.network.outliers import MahalanobisScore, OutlierScore, fit_threshold


def embeddings(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three stretched clouds of points in 8 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.eye(3, 8) * 10
    spread = torch.tensor([3.0, 1, 1, 1, 1, 1, 1, 0.1])
    return centres[labels] + torch.randn(count, 8, generator=generator) * spread, labels


@pytest.fixture
def fitted() -> MahalanobisScore:
    score = MahalanobisScore(classes=3, features=8)
    score.fit(*embeddings(3000, seed=1))
    return score


def test_known_points_score_about_one_and_the_threshold_flags_the_promised_share(
    fitted: MahalanobisScore,
) -> None:
    known = fitted(embeddings(3000, seed=2)[0]).numpy()
    assert known.mean() == pytest.approx(1.0, abs=0.1)
    threshold = fit_threshold(known, 0.05)
    assert (fitted(embeddings(3000, seed=3)[0]).numpy() > threshold).mean() == pytest.approx(0.05, abs=0.015)


def test_a_point_far_from_every_class_scores_more_than_all_known_ones(fitted: MahalanobisScore) -> None:
    known = fitted(embeddings(1000, seed=2)[0])
    assert fitted(torch.full((1, 8), 9.0)) > known.max()


def test_distance_counts_by_the_spread_in_its_direction(fitted: MahalanobisScore) -> None:
    centre = embeddings(3000, seed=1)[0][::3].mean(0)
    wide, narrow = centre.clone(), centre.clone()
    wide[0] += 1.0  # where the cloud is wide
    narrow[7] += 1.0  # where it is narrow
    assert fitted(narrow[None]) > 10 * fitted(wide[None])


def test_fewer_points_than_dimensions_still_give_finite_scores() -> None:
    score = MahalanobisScore(classes=3, features=8)
    score.fit(*embeddings(6, seed=1))
    scores = score(embeddings(50, seed=2)[0])
    assert bool(torch.isfinite(scores).all())


def test_a_class_without_points_harms_nobody() -> None:
    score = MahalanobisScore(classes=4, features=8)
    score.fit(*embeddings(300, seed=1))
    assert np.isfinite(score(embeddings(10, seed=2)[0]).numpy()).all()


def test_the_relative_distance_in_one_go_is_the_difference_of_the_two() -> None:
    score = OutlierScore(classes=3, features=8)
    score.fit_distance(*embeddings(3000, seed=1))
    some = embeddings(50, seed=2)[0]
    shown, _ = score.parts(torch.ones(50, 13, 64, 64), some, torch.zeros(50, 3))
    torch.testing.assert_close(
        shown[:, 0], score.distance(some) - score.background(some), atol=1e-4, rtol=1e-4
    )


def scores_of(valid: np.ndarray) -> np.ndarray:
    """The scores of tiles whose missing pixels alone are strange."""
    score = OutlierScore(classes=3, features=8)
    score.fit_limits([torch.randn(200, 3, generator=torch.Generator().manual_seed(0))])
    tiles = (valid * 1500).astype(np.uint16)
    return score(torch.from_numpy(tiles), torch.zeros(len(tiles), 8), torch.zeros(len(tiles), 3)).numpy()


def test_missing_pixels_are_flagged_and_missing_bands_are_not() -> None:
    valid = np.ones((4, 13, 64, 64))
    valid[1, 3:] = 0  # bands that are absent
    valid[2, :, :, :4] = 0  # a sixteenth of the tile
    valid[3] = 0  # all
    whole, absent, partly, empty = scores_of(valid)
    assert absent == whole
    assert partly > 1 > whole
    assert empty > partly


def parts(count: int, seed: int) -> torch.Tensor:
    """Distance, doubt and log odds of a fault, of known tiles that have nothing in common."""
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor(
        [0.1, 5.0, 2.0]
    )


def test_distance_and_doubt_count_alike_and_an_ordinary_input_check_does_not() -> None:
    score = OutlierScore(classes=3, features=8)
    score.fit_limits([parts(5000, seed=1)])
    known, nothing = parts(5000, seed=2), torch.zeros(5000)
    before = score.combine(known, nothing)
    assert float((before > 1).float().mean()) == pytest.approx(0.05, abs=0.01)
    for place, step in ((0, 0.2), (1, 10.0)):  # two deviations farther, or in as much more doubt
        moved = known.clone()
        moved[:, place] += step
        assert float((score.combine(moved, nothing) > 1).float().mean()) == pytest.approx(0.30, abs=0.05)
    quiet = known[:, 2] < 2.0  # below nine in ten
    other = known.clone()
    other[:, 2] = -9.0
    torch.testing.assert_close(score.combine(other, nothing)[quiet], before[quiet])
    other[:, 2] = 9.0
    assert bool((score.combine(other, nothing) > 1).all())


def test_limits_hold_for_the_kind_of_tiles_that_scores_highest() -> None:
    low, high = np.linspace(0, 1, 1000), np.linspace(0, 3, 100)
    threshold = fit_threshold(np.concatenate([low, high]), 0.05, np.repeat(["low", "high"], [1000, 100]))
    assert threshold == pytest.approx(2.85)
    assert fit_threshold(low, 0.05) == pytest.approx(0.95)


def test_a_long_embedding_is_scored_by_the_directions_in_which_tiles_vary() -> None:
    torch.manual_seed(0)
    score = OutlierScore(2, 400)
    mixing = torch.randn(20, 400)
    labels = torch.arange(600) % 2
    known = (torch.randn(600, 20) + 6 * labels[:, None]) @ mixing + 0.1 * torch.randn(600, 400)
    score.fit_distance(known, labels)
    between = (torch.randn(50, 20) + 3) @ mixing
    tiles, logits = torch.ones(50, 13, 64, 64), torch.zeros(50, 2)
    strange, usual = (score.parts(tiles, some, logits)[0][:, 0] for some in (between, known[:50]))
    assert strange.median() > usual.quantile(0.95)
