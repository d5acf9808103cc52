"""Language columns of LeRobot 0.6 reach the shards as they are; without them nothing changes."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_example_pb2

from sigma_jax.data.lerobot.dataset import open_dataset
from sigma_jax.data.shards.directory import open_shards
from sigma_jax.data.shards.prepare import prepare
from tests.data_pipeline import recordings

LENGTHS = (20, 22, 21)
EVENT = [
    ('role', pa.string()),
    ('content', pa.string()),
    ('style', pa.string()),
    ('camera', pa.string()),
]
EVENT += [('tool_calls', pa.list_(pa.string()))]
KINDS = {
    'language_persistent': pa.list_(pa.struct([*EVENT, ('timestamp', pa.float32())])),
    'language_events': pa.list_(pa.struct(EVENT)),
}


def spoken(column: str, episode: int, frame: int) -> list[dict]:
    """What stands at a frame: a plan for all of an episode, an event every third frame."""
    one = {
        'role': 'user',
        'content': f'größer, {episode}',
        'style': 'plan',
        'camera': None,
        'tool_calls': None,
    }
    if column == 'language_persistent':
        return [{**one, 'timestamp': 0.5}]
    calls = [json.dumps({'name': 'say', 'n': frame})]
    return (
        [] if frame % 3 else [{**one, 'content': f'{frame}', 'style': 'vqa', 'tool_calls': calls}]
    )


def as_json(column: pa.Array) -> pa.Array:
    """The same with tool calls of Arrow's own JSON type, as LeRobot writes them; none of them may
    be missing.
    """
    events, offsets = column.flatten(), column.offsets
    calls = events.field('tool_calls')
    texts = pa.ExtensionArray.from_storage(pa.json_(), calls.flatten())
    parts = [events.field(name) for name, _ in EVENT[:-1]] + [
        pa.ListArray.from_arrays(calls.offsets, texts)
    ]
    return pa.ListArray.from_arrays(
        offsets, pa.StructArray.from_arrays(parts, [name for name, _ in EVENT])
    )


def with_language(root: Path, columns: tuple[str, ...]) -> Path:
    recordings.record(root, LENGTHS)
    features = json.loads((root / 'meta/info.json').read_text())['features']
    said = {column: {'dtype': 'language', 'shape': [1], 'names': None} for column in columns}
    recordings.edit_info(root, features=features | said)
    for episode, length in enumerate(LENGTHS):
        path = root / f'data/chunk-000/episode_{episode:06d}.parquet'
        table = pq.read_table(path)
        for column in columns:
            storage = pa.array(
                [spoken(column, episode, frame) for frame in range(length)], KINDS[column]
            )
            own = as_json(storage) if column == 'language_events' else storage
            table = table.append_column(column, own)
        pq.write_table(table, path)
    return root


@pytest.mark.parametrize('columns', [tuple(KINDS), ('language_events',), ('language_persistent',)])
def test_every_record_holds_what_its_frame_says(tmp_path, columns):
    root, out = with_language(tmp_path / 'data', columns), tmp_path / 'out'
    assert open_dataset(root).cameras == recordings.CAMERAS and open_dataset(root).audios == {}
    meta = prepare(recordings.config(root), out).meta.to_json()
    assert meta['language_columns'] == list(columns) and 'JSON' in meta['language_told']
    files = [str(out / name) for name in sorted(meta['files']) if name.startswith('sigma-train.')]
    source, index = ArrayRecordDataSource(files), open_shards(out).split('train').records().index
    for number in range(len(index)):
        fields = tf_example_pb2.Example.FromString(source[number]).features.feature
        said = json.loads(fields['language'].bytes_list.value[0])
        at = int(index.episode[number]), int(index.frame[number])
        assert said == {column: spoken(column, *at) for column in columns}


def test_without_them_records_are_as_before(tmp_path):
    root = recordings.record(tmp_path / 'data', LENGTHS)
    meta = prepare(recordings.config(root), tmp_path / 'out').meta.to_json()
    assert not {'language_columns', 'language_told'} & set(meta)
    assert 'language' not in (tmp_path / 'out/features.json').read_text()
