"""Mesh thinning and the scene that is built from the robot's assets."""

import numpy as np
import pytest

from sigma_jax.errors import UserError
from sigma_jax.sim import assets
from sigma_jax.sim.scene import SUBSTEPS, TIMESTEP, SceneLayout, place


def grid(n):
    """A unit square of n x n cells, two triangles each."""
    x, y = np.meshgrid(np.linspace(0, 1, n + 1), np.linspace(0, 1, n + 1), indexing='ij')
    vertices = np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 3)
    index = np.arange((n + 1) ** 2).reshape(n + 1, n + 1)
    a, b, c, d = (
        part.reshape(-1)
        for part in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:])
    )
    return vertices, np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def areas(vertices, faces):
    corners = vertices[faces]
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2] / 2


def test_clustering_with_tiny_cells_only_merges_duplicates():
    vertices, faces = grid(4)
    soup = vertices[faces].reshape(-1, 3)
    merged, triangles = assets.cluster_vertices(soup, np.arange(len(soup)).reshape(-1, 3), 1e-6)
    assert len(merged) == len(vertices)
    assert len(triangles) == len(faces)
    np.testing.assert_allclose(np.sort(areas(merged, triangles)), np.sort(areas(vertices, faces)))


def test_clustering_thins_keeps_windings_and_drops_degenerate_faces():
    vertices, faces = grid(20)
    merged, triangles = assets.cluster_vertices(vertices, faces, 0.25)
    assert len(triangles) < len(faces) / 10
    assert (areas(merged, triangles) > 0).all()
    assert len(np.unique(np.sort(triangles, axis=1), axis=0)) == len(triangles)


def test_missing_asset_package_is_explained(monkeypatch):
    monkeypatch.setattr(assets, 'ASSET_PACKAGE', 'no_such_wheel')
    with pytest.raises(UserError, match=r'no_such_wheel.*pip install sigma_jax\[sim\]'):
        assets.robot_mjcf()


def test_a_step_is_one_thirtieth_of_a_second():
    assert pytest.approx(1 / 30) == SUBSTEPS * TIMESTEP


def test_place_puts_things_where_the_layout_says(env):
    layout = SceneLayout(
        {'pink': (0.25, 0.03, 0.4), 'blue': (0.2, -0.1, 0.0)}, (0.2, 0.15, 0.3), (0.17, -0.2)
    )
    place(env.model, env.data, layout)
    start = env.model.joint('pink_free').qposadr[0]
    np.testing.assert_allclose(env.data.qpos[start : start + 2], (0.25, 0.03))
    np.testing.assert_allclose(
        2 * np.arctan2(env.data.qpos[start + 6], env.data.qpos[start + 3]), 0.4
    )
    np.testing.assert_allclose(
        env.data.mocap_pos[env.model.body('plate').mocapid[0]][:2], (0.17, -0.2)
    )
