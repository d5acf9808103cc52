"""Ways to damage a LeRobot data set; each takes its folder. Episode 1 of three is the victim."""

import io
import json
import pickle
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.data_pipeline import recordings
from tests.data_pipeline.recordings import CAMERAS, edit_columns, edit_info

LENGTH = 25  # frames of the victim
SIZE = (96, 128)
VIDEO = recordings.video_path(1, CAMERAS[0])
PARQUET = 'data/chunk-000/episode_000001.parquet'
EPISODES = 'meta/episodes/chunk-000/file-000.parquet'
MARK = 'was_executed'

Damage = Callable[[Path], Any]


class Payload:
    """Unpickling one makes a folder named MARK where the program runs."""

    def __reduce__(self):
        return Path.mkdir, (Path(MARK),)


def both(first: Damage, second: Damage) -> Damage:
    return lambda root: (first(root), second(root))


def remove(name: str) -> Damage:
    return lambda root: (root / name).unlink()


def write(name: str, content: bytes | str) -> Damage:
    data = content.encode() if isinstance(content, str) else content
    return lambda root: (root / name).write_bytes(data)


def as_folder(name: str) -> Damage:
    """What no permission bit does to root: a path that cannot be read as a file."""

    def damage(root: Path) -> None:
        (root / name).unlink()
        (root / name).mkdir()

    return damage


def linked_out(name: str) -> Damage:
    def damage(root: Path) -> None:
        outside = root.parent / f'outside{Path(name).suffix}'
        (root / name).rename(outside)
        (root / name).symlink_to(outside)

    return damage


def keep(name: str, share: float) -> Damage:
    def damage(root: Path) -> None:
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: int(len(data) * share)])

    return damage


def replace(name: str, old: bytes, new: bytes) -> Damage:
    def damage(root: Path) -> None:
        data = (root / name).read_bytes()
        assert old in data
        (root / name).write_bytes(data.replace(old, new))

    return damage


def blank(name: str, start: float, count: int) -> Damage:
    """Zeros over `count` bytes from a share `start` of the file on."""

    def damage(root: Path) -> None:
        data = bytearray((root / name).read_bytes())
        at = int(len(data) * start)
        data[at : at + count] = bytes(count)
        (root / name).write_bytes(data)

    return damage


def info(**changes: Any) -> Damage:
    return lambda root: edit_info(root, **changes)


def feature(key: str, **changes: Any) -> Damage:
    def damage(root: Path) -> None:
        features = json.loads((root / 'meta/info.json').read_text())['features']
        features[key] |= changes
        edit_info(root, features=features)

    return damage


def without_feature(key: str) -> Damage:
    def damage(root: Path) -> None:
        features = json.loads((root / 'meta/info.json').read_text())['features']
        features.pop(key)
        edit_info(root, features=features)

    return damage


def lines(name: str, change: Callable[[list[dict]], Iterable[Any]]) -> Damage:
    """Another list of objects in a .jsonl file."""

    def damage(root: Path) -> None:
        rows = [json.loads(line) for line in (root / name).read_text().splitlines()]
        (root / name).write_text('\n'.join(map(json.dumps, change(rows))))

    return damage


def episode_line(**changes: Any) -> Damage:
    return lines('meta/episodes.jsonl', lambda rows: [rows[0], rows[1] | changes, *rows[2:]])


def column(name: str, value: Any) -> Damage:
    """Another column in the victim's parquet file, `None`: without it."""
    return lambda root: edit_columns(root, 1, **{name.replace('.', '__'): value})


def vectors(width: int = 6, **at: float) -> list[np.ndarray]:
    """Zeros, but `f3=nan` puts NaN into frame 3."""
    values = np.zeros((LENGTH, width))
    for frame, value in at.items():
        values[int(frame[1:]), 2] = value
    return list(values)


def times(change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return change(np.arange(LENGTH) / recordings.FPS).astype(np.float32)


def repeated(seconds: np.ndarray) -> np.ndarray:
    seconds[10] = seconds[9]
    return seconds


def jumping(seconds: np.ndarray) -> np.ndarray:
    seconds[10:] += 1
    return seconds


def rows(name: str, change: Callable[[list[dict]], Any]) -> Damage:
    """Other rows in a parquet file; `change` edits the list in place."""

    def damage(root: Path) -> None:
        table = pq.read_table(root / name).to_pylist()
        change(table)
        pq.write_table(pa.Table.from_pylist(table), root / name)

    return damage


def cell(name: str, key: str, value: Any) -> Damage:
    """One entry of a parquet file: row 1, column `key` (in all rows where the type changes)."""

    def change(table: list[dict]) -> None:
        for number, row in enumerate(table):
            if number == 1 or (value is not None and type(value) is not type(row[key])):
                row[key] = value

    return rows(name, change)


def table(name: str, columns: dict[str, Any], **options: Any) -> Damage:
    return lambda root: pq.write_table(pa.table(columns), root / name, **options)


def extension_type(root: Path) -> None:
    """A column whose type is a pickle, as pyarrow before 14.0.1 loaded it."""
    entries = {
        b'ARROW:extension:name': b'arrow.py_extension_type',
        b'ARROW:extension:metadata': hostile(),
    }
    old = pq.read_table(root / PARQUET).drop(['action'])
    field = pa.field('action', pa.string(), metadata=entries)
    pq.write_table(old.append_column(field, pa.array(['x'] * LENGTH)), root / PARQUET)


def hostile() -> bytes:
    return pickle.dumps(Payload())


def video(
    count: int = LENGTH, fps: int = recordings.FPS, size: tuple[int, int] = SIZE, **stream: str
) -> Damage:
    """Another video: `codec`, `pix_fmt` and `format` (of the container) as given."""

    def damage(root: Path) -> None:
        with av.open(str(root / VIDEO), 'w', format=stream.get('format', 'mp4')) as container:
            track = cast(
                av.VideoStream, container.add_stream(stream.get('codec', 'libx264'), rate=fps)
            )
            track.height, track.width, track.pix_fmt = *size, stream.get('pix_fmt', 'yuv420p')
            for i in range(count):
                image = np.full((*size, 3), 4 * i, np.uint8)
                container.mux(track.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
            container.mux(track.encode())

    return damage


def sound(root: Path) -> None:
    """An mp4 without images."""
    with av.open(str(root / VIDEO), 'w') as container:
        track = container.add_stream('aac', rate=8000, layout='mono')
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format='fltp', layout='mono'
        )
        frame.sample_rate = 8000
        container.mux(track.encode(frame))
        container.mux(track.encode())


def image_cell(value: Any) -> Damage:
    """What frame 4 of the victim's first camera holds (windows start at 0, 4 and 8)."""

    def damage(root: Path) -> None:
        cells = pq.read_table(root / PARQUET)[CAMERAS[0]].to_pylist()
        cells[4] = value
        edit_columns(root, 1, **{CAMERAS[0].replace('.', '__'): cells})

    return damage


def encoded(image: np.ndarray, kind: str = 'PNG') -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that claim an image of any size."""
    header = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    body = b'IDAT' + zlib.compress(bytes(1000))
    chunks = [
        struct.pack('>I', len(part) - 4) + part + struct.pack('>I', zlib.crc32(part))
        for part in (header, body)
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)
