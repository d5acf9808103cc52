"""Quantiles are exact, the formula is openpi's, and a joint that hardly moves cannot blow up."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.data.normalize import (
    compute_statistics,
    norm_stats_json,
    quantile_denormalize,
    quantile_normalize,
    read_norm_stats,
)
from sigma_jax.errors import UserError

RNG = np.random.default_rng(3)
VALUES = RNG.normal(size=(501, 3)) * [1, 40, 100] + [0, 5, -30]


def sorted_quantile(column: np.ndarray, q: float) -> float:
    """Linear interpolation between the two ranks around q (n - 1)."""
    ordered = sorted(column.tolist())
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def test_quantiles_are_exact() -> None:
    statistics = compute_statistics(VALUES)
    for j, column in enumerate(VALUES.T):
        np.testing.assert_allclose(statistics.q01[j], sorted_quantile(column, 0.01), rtol=1e-12)
        np.testing.assert_allclose(statistics.q99[j], sorted_quantile(column, 0.99), rtol=1e-12)
        np.testing.assert_allclose(statistics.mean[j], sum(column) / len(column), rtol=1e-12)
        spread = np.sqrt(sum((column - statistics.mean[j]) ** 2) / len(column))
        np.testing.assert_allclose(statistics.std[j], spread, rtol=1e-12)


def test_formula_and_inverse() -> None:
    statistics = compute_statistics(VALUES)
    x = VALUES.astype(np.float32)
    q01, q99 = statistics.q01, statistics.q99
    expected = (x - q01) / (q99 - q01 + 1e-6) * 2 - 1
    normalised = quantile_normalize(x, statistics)
    np.testing.assert_allclose(normalised, expected, atol=1e-5)
    np.testing.assert_allclose(quantile_denormalize(normalised, statistics), x, atol=1e-4)
    np.testing.assert_allclose(quantile_normalize(q01.astype(np.float32), statistics), -1, atol=1e-5)
    np.testing.assert_allclose(quantile_normalize(q99.astype(np.float32), statistics), 1, atol=1e-5)


def test_jax_and_numpy_agree_in_float32() -> None:
    statistics = compute_statistics(VALUES)
    x = VALUES.astype(np.float32)
    ours = jax.jit(lambda x: quantile_normalize(x, statistics))(jnp.asarray(x))
    assert ours.dtype == jnp.float32 == quantile_normalize(x, statistics).dtype
    np.testing.assert_allclose(ours, quantile_normalize(x, statistics), atol=1e-6)
    back = quantile_denormalize(ours, statistics)
    np.testing.assert_allclose(back, x, atol=1e-4)


@pytest.mark.parametrize('jitter', [0.0, 1e-5, 1e-4])
def test_near_constant_joints_are_reported_and_bounded(jitter: float) -> None:
    values = VALUES.copy()
    values[:, 1] = 7 + jitter * RNG.normal(size=len(values))
    statistics = compute_statistics(values)
    assert statistics.near_constant.tolist() == [False, True, False]
    assert np.abs(quantile_normalize(values, statistics)[:, 1] + 1).max() < 0.01
    np.testing.assert_allclose(
        quantile_denormalize(quantile_normalize(values, statistics), statistics), values, atol=1e-4
    )


def test_a_joint_that_moves_rarely_and_far_is_bounded() -> None:
    """q01 = q99 while one frame in 250 is 100 units away: openpi's formula gives 2e8 there."""
    values = VALUES.copy()
    values[:, 2] = 0
    values[::250, 2] = 100
    statistics = compute_statistics(values)
    assert statistics.near_constant.tolist() == [False, False, True]
    normalised = quantile_normalize(values, statistics)[:, 2]
    assert np.abs(normalised).max() < 20
    assert np.mean((normalised - normalised.mean()) ** 2) <= 0.25 + 1e-6


def test_file_is_openpis_and_comes_back_exactly(tmp_path) -> None:
    statistics = {'state': compute_statistics(VALUES), 'actions': compute_statistics(VALUES[:, :2])}
    path = tmp_path / 'norm_stats.json'
    path.write_text(norm_stats_json(statistics))
    body = json.loads(path.read_text())
    assert set(body) == {'norm_stats'}
    for name in ('state', 'actions'):
        assert set(body['norm_stats'][name]) == {'mean', 'std', 'q01', 'q99'}
    found = read_norm_stats(path)
    assert np.array_equal(found['state'].q99, statistics['state'].q99)
    padded = read_norm_stats(path, {'state': 2})
    assert np.array_equal(padded['state'].mean, statistics['state'].mean[:2])


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('{"norm_stats": {"state": {"mean": [0]}}}', 'mean, std, q01 and q99'),
        ('not json', 'norm_stats.json'),
        ('{"norm_stats": {"state": {"mean": [0], "std": [1], "q01": [0, 1], "q99": [1]}}}', 'different lengths'),
        ('{"norm_stats": {"state": {"mean": [0], "std": [NaN], "q01": [0], "q99": [1]}}}', 'not finite'),
        ('{"norm_stats": {"state": {"mean": [0], "std": [1], "q01": [0], "q99": [1]}}}', 'got 1'),
        ('{"norm_stats": {}}', 'got 0'),
    ],
)
def test_bad_files(text: str, expected: str, tmp_path) -> None:
    path = tmp_path / 'norm_stats.json'
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_norm_stats(path, {'state': 6})
    assert expected in str(caught.value)
