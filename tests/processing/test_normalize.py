"""Quantiles are exact, the formula is openpi's, and a joint that hardly moves cannot blow up."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.processing.normalize import (
    FORMULAS,
    Scaling,
    Statistics,
    compute_statistics,
    denormalize,
    norm_stats_json,
    normalize,
    read_norm_stats,
)

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
    normalised = normalize(x, statistics)
    np.testing.assert_allclose(normalised, expected, atol=1e-5)
    np.testing.assert_allclose(denormalize(normalised, statistics), x, atol=1e-4)
    np.testing.assert_allclose(normalize(q01.astype(np.float32), statistics), -1, atol=1e-5)
    np.testing.assert_allclose(normalize(q99.astype(np.float32), statistics), 1, atol=1e-5)


def test_jax_and_numpy_agree_in_float32() -> None:
    statistics = compute_statistics(VALUES)
    x = VALUES.astype(np.float32)
    ours = jax.jit(lambda x: normalize(x, statistics))(jnp.asarray(x))
    assert ours.dtype == jnp.float32 == normalize(x, statistics).dtype
    np.testing.assert_allclose(ours, normalize(x, statistics), atol=1e-6)
    back = denormalize(ours, statistics)
    np.testing.assert_allclose(back, x, atol=1e-4)


@pytest.mark.parametrize('jitter', [0.0, 1e-5, 1e-4])
def test_near_constant_joints_are_reported_and_bounded(jitter: float) -> None:
    values = VALUES.copy()
    values[:, 1] = 7 + jitter * RNG.normal(size=len(values))
    statistics = compute_statistics(values)
    assert statistics.near_constant.tolist() == [False, True, False]
    assert np.abs(normalize(values, statistics)[:, 1] + 1).max() < 0.01
    np.testing.assert_allclose(
        denormalize(normalize(values, statistics), statistics), values, atol=1e-4
    )


def test_a_joint_that_moves_rarely_and_far_is_bounded() -> None:
    """q01 = q99 while one frame in 250 is 100 units away: openpi's formula gives 2e8 there."""
    values = VALUES.copy()
    values[:, 2] = 0
    values[::250, 2] = 100
    statistics = compute_statistics(values)
    assert statistics.near_constant.tolist() == [False, False, True]
    normalised = normalize(values, statistics)[:, 2]
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
        (
            '{"norm_stats": {"state": {"mean": [0], "std": [1], "q01": [0, 1], "q99": [1]}}}',
            'different lengths',
        ),
        (
            '{"norm_stats": {"state": {"mean": [0], "std": [NaN], "q01": [0], "q99": [1]}}}',
            'not finite',
        ),
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


def whole(scaling: Scaling) -> Statistics:
    """Statistics with every column; the last dimension never moved."""
    values = np.concatenate([VALUES, np.full((len(VALUES), 1), 7.0)], axis=1)
    levels = {'q10': 0.1, 'q90': 0.9}
    more = {'min': values.min(0), 'max': values.max(0)} | {
        k: np.quantile(values, q, axis=0) for k, q in levels.items()
    }
    return dataclasses.replace(compute_statistics(values), **more, scaling=scaling)


ALL = [Scaling(mode, formula) for formula, modes in FORMULAS.items() for mode in modes]


@pytest.mark.parametrize('scaling', ALL, ids=lambda s: f'{s.formula}-{s.mode}')
def test_every_mode_is_the_affine_map_of_its_low_and_span(scaling: Scaling) -> None:
    """What a step on the accelerator computes by, `low` and `span`, is what the loader computes
    by.
    """
    statistics = whole(scaling)
    x = np.random.default_rng(5).normal(0, 50, (40, 4)).astype(np.float32)
    # a range of 1e-8 leaves no digits
    moving = slice(0, 3) if scaling.formula != 'sigma' else slice(0, 4)
    affine = (x - statistics.low) / statistics.span * 2 - 1
    np.testing.assert_allclose(normalize(x, statistics)[:, moving], affine[:, moving], atol=2e-5)
    back = denormalize(normalize(x, statistics), statistics)
    np.testing.assert_allclose(back[:, moving], x[:, moving], atol=2e-4)
    assert statistics.low.dtype == statistics.span.dtype == np.float32


@pytest.mark.parametrize(
    ('scaling', 'zero', 'one'),
    [
        (Scaling('quantile', 'openpi'), ('q01', 'q99'), 1e-6),
        (Scaling('quantile', 'lerobot'), ('q01', 'q99'), 0.0),
        (Scaling('quantile10', 'lerobot'), ('q10', 'q90'), 0.0),
        (Scaling('min_max', 'lerobot'), ('min', 'max'), 0.0),
    ],
)
def test_ends_of_the_range(scaling: Scaling, zero: tuple[str, str], one: float) -> None:
    statistics = whole(scaling)
    low, high = (getattr(statistics, name)[:3] for name in zero)
    got = normalize(np.stack([low, high]), statistics.cut(3))
    np.testing.assert_allclose(got, [[-1] * 3, 1 - 2 * one / (high - low)], atol=1e-5)


def test_a_joint_that_never_moved_as_each_original_has_it() -> None:
    for scaling, step in (
        (Scaling('quantile', 'openpi'), 1e-6),
        (Scaling('quantile', 'lerobot'), 1e-8),
        (Scaling('quantile', 'lerobot', 1e-4), 1e-4),
        (Scaling('quantile', 'sigma'), 1.0),
    ):
        got = normalize(np.array([0, 0, 0, 7 + step]), whole(scaling))[3]
        np.testing.assert_allclose(got, 1, atol=1e-2)
    mean = normalize(np.array([0, 0, 0, 7.0]), whole(Scaling('mean_std', 'openpi')))
    np.testing.assert_allclose(mean[3], 0, atol=1e-12)


def test_precision_is_the_original_s() -> None:
    x = VALUES.astype(np.float32)[:, :3]
    kinds = {
        formula: normalize(x, whole(Scaling('quantile', formula)).cut(3)).dtype
        for formula in FORMULAS
    }
    assert kinds == {'sigma': np.float32, 'openpi': np.float64, 'lerobot': np.float32}


def test_a_mode_that_a_formula_does_not_have() -> None:
    with pytest.raises(UserError, match="got mode 'min_max' of 'openpi'; correct the policy"):
        Scaling('min_max', 'openpi')
    with pytest.raises(UserError, match="got mode 'quantile' of 'mine'"):
        Scaling('quantile', 'mine')


def test_further_columns_survive_the_file_and_missing_ones_are_named(tmp_path) -> None:
    path, scaling = tmp_path / 'norm_stats.json', Scaling('min_max', 'lerobot')
    path.write_text(norm_stats_json({'state': whole(scaling)}))
    found = read_norm_stats(path, scalings={'state': scaling})['state']
    assert found.scaling == scaling and all(
        np.array_equal(x, found.columns()[key]) for key, x in whole(scaling).columns().items()
    )
    path.write_text(norm_stats_json({'state': compute_statistics(VALUES)}))
    with pytest.raises(UserError, match="got a file without .'min'"):
        read_norm_stats(path, scalings={'state': scaling})
