"""RLDS data sets made on the spot: TFDS's own serialiser, and TFRecord files framed by an
independent checksum.
"""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

TASKS = ('lift the brick', 'turn the knob')


def features(state_width: int = 7) -> tfds.features.FeaturesDict:
    """The features of one episode, in the manner of Open X-Embodiment."""
    f = tfds.features
    observation = {
        'image': f.Image(shape=(24, 32, 3), encoding_format='png'),
        'wrist_image': f.Image(shape=(None, None, 3), encoding_format='jpeg'),
        'depth': f.Image(shape=(24, 32, 1), dtype=np.uint16, encoding_format='png'),
        'state': f.Tensor(shape=(state_width,), dtype=np.float32),
    }
    action = {'arm': f.Tensor(shape=(6,), dtype=np.float64), 'gripper': f.Scalar(np.bool_)}
    steps = {
        'observation': f.FeaturesDict(observation),
        'action': f.FeaturesDict(action),
        'reward': f.Scalar(np.float32),
        'is_last': f.Scalar(np.bool_),
        'language_instruction': f.Text(),
    }
    return f.FeaturesDict({'steps': f.Dataset(steps), 'episode_metadata': {'file_path': f.Text()}})


def camera_image(episode: int, step: int) -> np.ndarray:
    """A flat colour that names episode and step."""
    return np.full((24, 32, 3), (10 * step, 40 * episode, 7), np.uint8)


def episode(index: int, length: int, state_width: int = 7) -> dict[str, Any]:
    """An episode as TFDS takes it; images as encoded bytes, which need no TensorFlow."""
    rng = np.random.default_rng(index)
    state = rng.normal(size=(length, state_width)).astype(np.float32)
    arm = rng.normal(size=(length, 6)).astype(np.float32).astype(np.float64)
    steps = [
        {
            'observation': {
                'image': encode(camera_image(index, n), 'PNG'),
                'wrist_image': encode(camera_image(index, n)[::2], 'JPEG'),
                'depth': encode(np.zeros((24, 32), np.uint16), 'PNG'),
                'state': state[n],
            },
            'action': {'arm': arm[n], 'gripper': bool(n % 2)},
            'reward': 0.0,
            'is_last': n == length - 1,
            'language_instruction': TASKS[index % 2],
        }
        for n in range(length)
    ]
    return {'steps': steps, 'episode_metadata': {'file_path': 'x'}}


def encode(image: np.ndarray, kind: str) -> bytes:
    """Bytes of an image."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write(
    root: Path,
    lengths: tuple[int, ...],
    files: int = 2,
    kind: str = 'tfrecord',
    state_width: int = 7,
    tasks: Callable[[int, int], str] | None = None,
) -> Path:
    """Writes a TFDS folder of the split 'train', the episodes spread over `files`; `tasks` of
    (episode, step).
    """
    root.mkdir(parents=True)
    known = features(state_width)
    serializer = tfds.core.example_serializer.ExampleSerializer(known.get_serialized_info())
    episodes = [episode(n, length, state_width) for n, length in enumerate(lengths)]
    for index, one in enumerate(episodes if tasks else ()):
        one['steps'] = [
            step | {'language_instruction': tasks(index, n)} for n, step in enumerate(one['steps'])
        ]
    encoded = [known.encode_example(one) for one in episodes]
    records = [serializer.get_tf_example(one).SerializeToString() for one in encoded]
    parts = [
        records[n * len(records) // files : (n + 1) * len(records) // files] for n in range(files)
    ]
    for n, part in enumerate(parts):
        path = root / f'robot-train.{kind}-{n:05d}-of-{files:05d}'
        if kind == 'tfrecord':
            path.write_bytes(b''.join(map(frame, part)))
        else:
            writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
            for record in part:
                writer.write(record)
            writer.close()
    split = tfds.core.SplitInfo(name='train', shard_lengths=list(map(len, parts)), num_bytes=0)
    tfds.folder_dataset.write_metadata(
        data_dir=root,
        features=known,
        split_infos=[split],
        version='1.0.0',
        filename_template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
        check_data=False,
    )
    return root


def frame(data: bytes) -> bytes:
    """A TFRecord of the data."""
    length = struct.pack('<Q', len(data))
    return length + struct.pack('<I', masked(length)) + data + struct.pack('<I', masked(data))


def masked(data: bytes) -> int:
    """TFRecord's checksum, a byte at a time as textbooks have it."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF
