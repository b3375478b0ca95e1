import numpy as np
import pytest

from tilewise.models.network.calibration import fit_thresholds, limit_of, scores_of


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities of 4,000 tiles and ten classes, with labels drawn from them."""
    random = np.random.default_rng(0)
    shares = random.dirichlet(np.full(10, 0.2), 4000).astype(np.float32)
    return shares, np.array([random.choice(10, p=p / p.sum()) for p in shares.astype(np.float64)])


@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
@pytest.mark.parametrize("coverage", [0.9, 0.99])
def test_sets_cover_as_often_as_asked(
    answers: tuple[np.ndarray, np.ndarray], method: str, coverage: float
) -> None:
    (shares, labels), random = answers, np.random.default_rng(1)
    limit = limit_of(scores_of(method, shares[::2], random), labels[::2], coverage)
    inside = scores_of(method, shares[1::2], random) <= limit
    assert inside[np.arange(2000), labels[1::2]].mean() == pytest.approx(coverage, abs=0.02)


def test_lac_is_what_model_files_hold_and_gives_the_smallest_sets(
    answers: tuple[np.ndarray, np.ndarray],
) -> None:
    (shares, labels), random = answers, np.random.default_rng(1)
    found = {m: scores_of(m, shares, random) for m in ("lac", "aps", "raps")}
    sizes = {m: (s <= limit_of(s, labels, 0.9)).sum(1).mean() for m, s in found.items()}
    assert sizes["lac"] == min(sizes.values())
    assert limit_of(found["lac"], labels, 0.9) == pytest.approx(
        1 - fit_thresholds(shares, labels, (0.9,))[0.9]
    )


def test_too_few_tiles_for_a_coverage_leave_every_class_in() -> None:
    assert limit_of(np.zeros((5, 3)), np.zeros(5, int), 0.99) == np.inf


def test_raps_adds_its_penalty_for_each_rank_beyond_the_second() -> None:
    """Angelopoulos et al. 2021, equation 4, with λ the penalty and k_reg = 2."""
    shares = np.array([[0.1, 0.5, 0.05, 0.3, 0.05]])
    aps, raps = (scores_of(m, shares, np.random.default_rng(0), 0.25) for m in ("aps", "raps"))
    by_likelihood = np.argsort(-shares[0], kind="stable")
    np.testing.assert_allclose((raps - aps)[0, by_likelihood[:3]], [0, 0, 0.25])
    np.testing.assert_allclose(np.sort((raps - aps)[0]), [0, 0, 0.25, 0.5, 0.75])


def test_aps_is_the_probability_of_all_likelier_classes_and_a_fraction_of_its_own() -> None:
    """Romano, Sesia & Candès 2020, equation 5, written as a sum over classes."""
    shares = np.random.default_rng(2).dirichlet(np.ones(6), 50)
    found = scores_of("aps", shares, np.random.default_rng(3))
    fractions = np.random.default_rng(3).random((50, 1))
    for tile, fraction, scores in zip(shares, fractions[:, 0], found, strict=True):
        for own, score in zip(tile, scores, strict=True):
            assert score == pytest.approx(tile[tile > own].sum() + fraction * own)


def test_the_penalty_of_raps_is_a_hundredth_where_none_is_named() -> None:
    shares = np.array([[0.1, 0.5, 0.05, 0.31, 0.04]])
    aps, raps = (scores_of(m, shares, np.random.default_rng(0)) for m in ("aps", "raps"))
    np.testing.assert_allclose((raps - aps)[0], [0.01, 0, 0.02, 0, 0.03], atol=1e-12)


@pytest.mark.parametrize(
    ("coverage", "limit"), [(0.05, 0), (0.5, 4), (0.55, 5), (0.75, 7), (0.9, 8), (0.91, np.inf)]
)
def test_the_limit_is_the_rank_of_the_finite_sample_quantile(coverage: float, limit: float) -> None:
    """Of nine tiles and a new one, ceil(10 * coverage) have at most the limit."""
    scores = np.column_stack([np.random.default_rng(4).permutation(9), np.full(9, 50)])
    assert limit_of(scores, np.zeros(9, int), coverage) == limit
