"""Images and videos that lie on their side are seen as LeRobot sees them; a cell may name a file
instead.
"""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sigma_jax.data.lerobot.dataset import open_dataset
from sigma_jax.errors import UserError
from tests.data_pipeline import films, lerobot_reference, recordings

CAMERA = recordings.CAMERAS[0]
TAG = 0x0112
# what the tag's values say is done to the stored image, by numpy alone
TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, 1),
}
MATRICES = {  # where a step to the right and a step down lead, and the quarters counterclockwise
    'none': ((1, 0), (0, 1), 0),
    'a quarter to the right': ((0, 1), (-1, 0), 3),
    'head over': ((-1, 0), (0, -1), 2),
    'a quarter to the left': ((0, -1), (1, 0), 1),
}
ODD = {
    'mirrored': ((-1, 0), (0, 1)),
    'upside down in a mirror': ((1, 0), (0, -1)),
    'diagonal': ((0, 1), (1, 0)),
    'slanted': ((0.5, 0.5), (-0.5, 0.5)),
    'twice as large': ((2, 0), (0, 2)),
}


def drawing() -> np.ndarray:
    """24 x 32 pixels, no two corners alike, smooth enough for JPEG."""
    rows, columns = np.mgrid[:24, :32]
    return np.stack([10 * rows, 7 * columns, 255 - 4 * (rows + columns)], -1).astype(np.uint8)


def encoded(image: np.ndarray, kind: str, tag: int | None, **more) -> bytes:
    drawn_image, buffer = Image.fromarray(image), io.BytesIO()
    if tag is not None:
        exif = Image.Exif()
        exif[TAG] = tag
        more['exif'] = exif
    drawn_image.save(
        buffer, kind, **({'quality': 100, 'subsampling': 0} if kind == 'JPEG' else {}), **more
    )
    return buffer.getvalue()


def with_cells(root: Path, cells: list, shape: tuple[int, int] = (24, 32)) -> Path:
    """A data set of one episode whose first camera has these cells."""
    recordings.record(root, (len(cells),))
    struct = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
    column = pa.array(cells, struct if isinstance(cells[0], dict) else None)
    recordings.edit_columns(root, 0, **{CAMERA.replace('.', '__'): column})
    features = json.loads((root / 'meta/info.json').read_text())['features']
    features[CAMERA] = features[CAMERA] | {'shape': [*shape, 3]}
    recordings.edit_info(root, features=features)
    return root


def read(root: Path, row: int = 0) -> np.ndarray:
    return next(open_dataset(root).read_episode(0).frames(CAMERA, [row]))


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP'])
@pytest.mark.parametrize('tag', TURNS)
def test_a_tagged_image_is_turned(tag: int, kind: str, tmp_path) -> None:
    stored = encoded(drawing(), kind, tag, **({'lossless': True} if kind == 'WEBP' else {}))
    turned = TURNS[tag](drawing())
    for name, shape in (('as seen', turned.shape[:2]), ('as stored', (24, 32))):
        found = read(
            with_cells(tmp_path / name, [{'bytes': stored, 'path': None}] * 3, shape), row=2
        )
        assert found.shape == turned.shape
        assert np.abs(found.astype(int) - turned).max() <= (4 if kind == 'JPEG' else 0)


@pytest.mark.parametrize('tag', [None, 0, 9, 255])
def test_a_tag_without_a_meaning_turns_nothing(tag: int | None, tmp_path) -> None:
    root = with_cells(tmp_path, [{'bytes': encoded(drawing(), 'PNG', tag), 'path': None}])
    assert np.array_equal(read(root), drawing())


@pytest.mark.parametrize(
    ('tag', 'shape'), [(3, (32, 24)), (None, (32, 24)), (6, (24, 24)), (1, (32, 24))]
)
def test_a_size_that_is_neither_stored_nor_seen_is_refused(
    tag: int | None, shape: tuple[int, int], tmp_path
) -> None:
    root = with_cells(tmp_path, [{'bytes': encoded(drawing(), 'PNG', tag), 'path': None}], shape)
    with pytest.raises(UserError, match=f'{shape[0]} x {shape[1]} pixels .* got 24 x 32'):
        read(root)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
@pytest.mark.parametrize('form', ['relative', 'absolute', 'text', 'name beside bytes'])
def test_a_cell_may_name_a_file_of_the_data_set(form: str, kind: str, tmp_path) -> None:
    root, place = tmp_path / 'data', f'images/{CAMERA}/episode-000000/frame-000001.{kind.lower()}'
    (root / place).parent.mkdir(parents=True)
    (root / place).write_bytes(encoded(drawing(), kind, 8))
    stored = encoded(drawing(), kind, 8) if form == 'name beside bytes' else None
    path = {'absolute': str(root / place), 'name beside bytes': 'frame-000001.png'}.get(form, place)
    with_cells(root, [path if form == 'text' else {'bytes': stored, 'path': path}], (32, 24))
    assert np.abs(read(root).astype(int) - TURNS[8](drawing())).max() <= (
        4 if kind == 'JPEG' else 0
    )


@pytest.mark.parametrize(
    ('path', 'words'),
    [
        ('images/none.png', 'no file there'),
        ('meta', 'no file there'),
        ('../secret.png', 'inside the data set'),
        ('images/../../secret.png', 'inside the data set'),
        ('/etc/hostname', 'inside the data set'),
        ('link.png', 'got a link to'),
        ('https://example.org/a.png', 'no file there'),
        ('zip://a.png::b.zip', 'no file there'),
        ('meta/info.json', 'the file is damaged'),
        ('', 'neither bytes nor a path'),
        (None, 'neither bytes nor a path'),
    ],
)
def test_a_path_that_leads_nowhere_or_out_is_refused(
    path: str | None, words: str, tmp_path
) -> None:
    root = with_cells(tmp_path / 'data', [{'bytes': None, 'path': path}])
    (tmp_path / 'secret.png').write_bytes(recordings.png(drawing()))
    (root / 'link.png').symlink_to(tmp_path / 'secret.png')
    with pytest.raises(UserError, match=words) as caught:
        read(root)
    assert 'episode 0, frame 0' in str(caught.value) or words == 'got a link to'


def turned_film(
    root: Path, right: tuple, down: tuple, shape: tuple[int, int] | None = None
) -> Path:
    films.write_dataset(root, [12, 10])
    films.set_matrix(root / films.VIDEO.format(0), right, down)
    if shape:
        features = json.loads((root / 'meta/info.json').read_text())['features']
        recordings.edit_info(
            root,
            features=features | {films.CAMERA: features[films.CAMERA] | {'shape': [*shape, 3]}},
        )
    return root


@pytest.mark.parametrize('name', MATRICES)
def test_a_video_is_turned_as_its_container_says(name: str, tmp_path) -> None:
    right, down, quarters = MATRICES[name]
    plain = films.write_dataset(tmp_path / 'plain', [12, 10])
    seen = np.rot90(np.zeros((films.HEIGHT, films.WIDTH)), quarters).shape
    for shape in (None, seen):
        root = turned_film(tmp_path / str(shape), right, down, shape)
        frames = zip(
            *(open_dataset(x).read_episode(1).frames(films.CAMERA) for x in (root, plain)),
            strict=True,
        )
        said = [films.number_of(np.rot90(found, -quarters)) for found, stored in frames]
        assert said == list(range(12, 22))
        first, stored = (
            next(open_dataset(x).read_episode(1).frames(films.CAMERA, [3])) for x in (root, plain)
        )
        assert np.array_equal(first, np.rot90(stored, quarters))


@pytest.mark.parametrize('name', ODD)
def test_a_video_that_is_mirrored_or_slanted_is_refused(name: str, tmp_path) -> None:
    root = turned_film(tmp_path, *ODD[name])
    with pytest.raises(UserError, match='turned by quarters in .* got the matrix'):
        list(open_dataset(root).read_episode(0).frames(films.CAMERA, [0]))


@pytest.mark.reference
def test_lerobot_turns_videos_by_the_same_quarters(tmp_path) -> None:
    """By torchcodec, which it prefers; its PyAV reader leaves them as they are stored."""
    roots = [
        turned_film(tmp_path / str(n), right, down)
        for n, (right, down, _) in enumerate(MATRICES.values())
    ]
    for root, theirs in zip(
        roots, lerobot_reference.images(roots, films.CAMERA, [0, 7]), strict=True
    ):
        for index in (0, 1):
            ours = open_dataset(root).read_episode(index).frames(films.CAMERA, [0, 7])
            for drawn_image, frame in zip(theirs['torchcodec'][index], ours, strict=True):
                assert (
                    drawn_image is not None and np.abs(drawn_image.astype(int) - frame).max() <= 3
                )


@pytest.mark.reference
def test_lerobot_turns_images_in_cells_the_same_way(tmp_path) -> None:
    root = films.write_dataset(tmp_path, [16])
    cells = [
        {'bytes': encoded(drawing(), kind, tag), 'path': None}
        for kind in ('PNG', 'JPEG')
        for tag in TURNS
    ]
    films.replace_video_by_cells(root, cells, (24, 32))
    (theirs,) = lerobot_reference.images([root], films.CAMERA, list(range(16)))
    ours = open_dataset(root).read_episode(0).frames(films.CAMERA)
    for drawn_image, frame in zip(theirs['pyav'][0], ours, strict=True):
        assert drawn_image is not None and np.abs(drawn_image.astype(int) - frame).max() <= 1
