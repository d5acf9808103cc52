"""The table of bad inputs.

An entry: which data set (v2.1 or v3.0 with AV1 video, or v2.1 with images in its parquet), what
happens to it, and words of the sentence that it must end in. `WHOLE` is damage to all of a data
set, `EPISODE` to one episode, so that `data.on_bad_episode = 'skip'` can leave it out.
"""

import numpy as np
import pyarrow as pa

from tests.data_pipeline import damages as d
from tests.data_pipeline.recordings import CAMERAS

OLD, NEW, IMAGES = 'v2.1', 'v3.0', 'images'
LENGTH, VIDEO, PARQUET = d.LENGTH, d.VIDEO, d.PARQUET
STATE, UP = 'observation.state', CAMERAS[0]
PLACE = 'videos/{video_key}/episode_{episode_index:06d}.mp4'

INFO = {
    'no info': (OLD, d.remove('meta/info.json'), 'info.json, got no file'),
    'info is a folder': (OLD, d.as_folder('meta/info.json'), 'info.json, got no file'),
    'broken info': (OLD, d.write('meta/info.json', '{"fps":'), 'expected JSON in'),
    'info is a list': (OLD, d.write('meta/info.json', '[1]'), 'got a list'),
    'info not UTF-8': (NEW, d.write('meta/info.json', b'{"fps": "\xff"}'), 'expected UTF-8'),
    'endless brackets': (NEW, d.write('meta/info.json', '[' * 200_000), 'expected JSON in'),
    'info is a link': (OLD, d.linked_out('meta/info.json'), 'got a link to'),
    'old version': (OLD, d.info(codebase_version='v2.0'), "got 'v2.0'"),
    'no version': (NEW, d.info(codebase_version=None), 'got None'),
    'version swapped': (OLD, d.info(codebase_version='v3.0'), 'tasks.parquet'),
    'no features': (OLD, d.info(features={}), "expected 'features'"),
    'features in a list': (OLD, d.info(features=['action']), "expected 'features'"),
    'feature is a text': (NEW, d.info(features={'action': 'x'}), "expected 'features'"),
    'feature with a slash': (OLD, d.info(features={'../../x': {}}), "got '../../x'"),
    'no state feature': (OLD, d.without_feature(STATE), "expected a feature 'observation.state'"),
    'camera not in features': (NEW, d.without_feature(UP), 'data.cameras'),
    'state 33 wide': (OLD, d.feature(STATE, shape=[33]), 'got [33]'),
    'state of text width': (OLD, d.feature(STATE, shape=['6']), "got ['6']"),
    'state without shape': (NEW, d.feature(STATE, shape=None), 'got None'),
    'feature of 30 GB': (
        OLD,
        d.feature(UP, shape=[100_000, 100_000, 3]),
        'got [100000, 100000, 3]',
    ),
    'feature of one side': (OLD, d.feature(UP, shape=[96]), 'got [96]'),
    'feature of no height': (NEW, d.feature(UP, shape=[0, 128, 3]), 'got [0, 128, 3]'),
    'no fps': (OLD, d.info(fps=None), "expected 'fps'"),
    'fps 0': (OLD, d.info(fps=0), "expected 'fps'"),
    'fps below 0': (OLD, d.info(fps=-30), 'got -30'),
    'fps NaN': (NEW, d.info(fps=float('nan')), 'got nan'),
    'fps text': (NEW, d.info(fps='30'), "got '30'"),
    'fps of other rows': (NEW, d.info(fps=60), 'got a step of 2.00 frames'),
    'chunk size 0': (OLD, d.info(chunks_size=0), "'chunks_size'"),
    'chunk size text': (OLD, d.info(chunks_size='many'), "got 'many'"),
    'no video path': (OLD, d.info(video_path=None), 'expected video_path'),
    'video path a number': (OLD, d.info(video_path=7), 'path template'),
    'path leaves': (OLD, d.info(video_path='../../' + PLACE), 'inside the data set'),
    'data path leaves': (
        NEW,
        d.info(data_path='data/../../{chunk_index}{file_index}'),
        'inside the data set',
    ),
    'absolute path': (OLD, d.info(video_path='/etc/{video_key}'), 'inside the data set'),
    'path with a hidden field': (OLD, d.info(video_path='{video_key.__class__}'), 'path template'),
    'path of 1 GB': (OLD, d.info(data_path='{episode_index:0999999999d}'), 'path template'),
    'path unbalanced': (OLD, d.info(data_path='data/{episode_index'), 'path template'),
    'fewer episodes than stated': (
        OLD,
        d.lines('meta/episodes.jsonl', lambda rows: rows[:2]),
        'total_episodes',
    ),
    'fewer frames than stated': (NEW, d.info(total_frames=76), 'total_frames'),
}
LISTS = {
    'no tasks file': (OLD, d.remove('meta/tasks.jsonl'), 'tasks.jsonl, got no file'),
    'no tasks': (OLD, d.write('meta/tasks.jsonl', ''), 'got none'),
    'task empty': (
        OLD,
        d.lines('meta/tasks.jsonl', lambda rows: [r | {'task': ' '} for r in rows]),
        "got ' '",
    ),
    'task missing': (
        OLD,
        d.lines('meta/tasks.jsonl', lambda rows: [{'task_index': 0}]),
        "'task' in",
    ),
    'task a number': (
        OLD,
        d.lines('meta/tasks.jsonl', lambda rows: [rows[0] | {'task': 5}]),
        'got 5',
    ),
    'task not UTF-8': (
        OLD,
        d.write('meta/tasks.jsonl', b'{"task_index": 0, "task": "\xc3("}'),
        'expected UTF-8',
    ),
    'half a character': (
        OLD,
        d.write('meta/tasks.jsonl', '{"task_index": 0, "task": "\\ud800"}'),
        'expected Unicode',
    ),
    'task twice': (
        OLD,
        d.lines('meta/tasks.jsonl', lambda rows: [rows[0], *rows]),
        'one of them twice',
    ),
    'tasks in lists': (OLD, d.lines('meta/tasks.jsonl', lambda rows: [[0, 'lift']]), 'got a list'),
    'no episodes': (OLD, d.write('meta/episodes.jsonl', ''), 'at least one episode'),
    'episode twice': (
        OLD,
        d.lines('meta/episodes.jsonl', lambda rows: [*rows, rows[1]]),
        'got 1 twice',
    ),
    'episode without number': (OLD, d.episode_line(episode_index=None), "'episode_index'"),
    'length below 0': (OLD, d.episode_line(length=-1), 'got -1'),
    'length text': (OLD, d.episode_line(length='25'), "got '25'"),
    'length of 10 GB': (OLD, d.episode_line(length=10**10), 'got 10000000000'),
    'no list of episodes': (NEW, d.remove(d.EPISODES), 'meta/episodes'),
    'cut list of episodes': (NEW, d.keep(d.EPISODES, 0.5), 'readable parquet'),
    'list without lengths': (
        NEW,
        d.rows(d.EPISODES, lambda rows: [r.pop('length') for r in rows]),
        'column length',
    ),
    'episode twice in v3.0': (NEW, d.cell(d.EPISODES, 'episode_index', 0), 'got 0 twice'),
    'chunk null': (NEW, d.cell(d.EPISODES, 'data/chunk_index', None), 'got None'),
    'chunk text': (NEW, d.cell(d.EPISODES, 'data/chunk_index', 'a'), "got 'a'"),
    'file below 0': (NEW, d.cell(d.EPISODES, f'videos/{UP}/file_index', -1), 'got -1'),
    'start NaN': (NEW, d.cell(d.EPISODES, f'videos/{UP}/from_timestamp', float('nan')), 'got nan'),
    'tasks without text': (
        NEW,
        d.table('meta/tasks.parquet', {'task_index': [0, 1]}),
        'task_index and task',
    ),
    'task null': (
        NEW,
        d.table('meta/tasks.parquet', {'task_index': [0], 'task': [None]}),
        'got None',
    ),
    'tasks a pickle': (NEW, d.write('meta/tasks.parquet', d.hostile()), 'readable parquet'),
    'task bytes': (
        NEW,
        d.table(
            'meta/tasks.parquet', {'task_index': [0], 'task': pa.array([b'\xff']).view(pa.string())}
        ),
        'readable parquet',
    ),
}
ROWS = {
    'length 0': (
        OLD,
        d.both(d.episode_line(length=0), d.info(total_frames=50)),
        'expected 0 rows (at least 1) of',
    ),
    'one row too few': (
        OLD,
        d.both(d.episode_line(length=26), d.info(total_frames=76)),
        'expected 26 rows',
    ),
    'no parquet': (OLD, d.remove(PARQUET), 'episode_000001.parquet, got nothing'),
    'parquet a folder': (OLD, d.as_folder(PARQUET), 'got a folder'),
    'parquet empty': (OLD, d.write(PARQUET, b''), 'readable parquet'),
    'parquet cut': (OLD, d.keep(PARQUET, 0.5), 'readable parquet'),
    'parquet damaged inside': (OLD, d.blank(PARQUET, 0.0, 1200), 'readable parquet'),
    'parquet a link': (OLD, d.linked_out(PARQUET), 'got a link to'),
    'hostile pickle': (OLD, d.write(PARQUET, d.hostile()), 'readable parquet'),
    'hostile column type': (OLD, d.extension_type, "'action'"),
    'rows beyond measure': (
        OLD,
        d.table(PARQUET, {'action': pa.nulls(2**25 + 1)}),
        "one column 'observation.state'",
    ),
    'no action': (OLD, d.column('action', None), "column 'action'"),
    'state of 5': (OLD, d.column(STATE, d.vectors(5)), 'got 5 at frame 0'),
    'action of 7': (OLD, d.column('action', d.vectors(7)), 'got 7 at frame 0'),
    'action ragged': (
        OLD,
        d.column('action', [[0.0] * (5 if i == 3 else 6) for i in range(LENGTH)]),
        '5 at frame 3',
    ),
    'action scalar': (OLD, d.column('action', np.zeros(LENGTH)), 'got 1;'),
    'action texts': (OLD, d.column('action', [['1.0'] * 6] * LENGTH), 'list<element: string>'),
    'action lists of lists': (OLD, d.column('action', [[[0.0]] * 6] * LENGTH), "column 'action'"),
    'action structs': (OLD, d.column('action', [{'x': 1.0}] * LENGTH), 'struct'),
    'action null': (OLD, d.column('action', [None] * LENGTH), 'missing values'),
    'NaN in state': (
        OLD,
        d.column(STATE, d.vectors(f3=np.nan)),
        'states in episode 1, got nan at frame 3',
    ),
    'inf in action': (OLD, d.column('action', d.vectors(f7=np.inf)), 'got inf at frame 7'),
    'more than float32': (OLD, d.column('action', d.vectors(f7=1e300)), 'got inf at frame 7'),
    'time NaN': (OLD, d.column('timestamp', d.times(lambda t: t * np.nan)), 'times in episode 1'),
    'time jumps': (OLD, d.column('timestamp', d.times(d.jumping)), 'at frame 9'),
    'time repeats': (
        OLD,
        d.column('timestamp', d.times(d.repeated)),
        'step of 0.00 frames at frame 9',
    ),
    'time goes back': (
        OLD,
        d.column('timestamp', d.times(lambda t: t - t[0] if t[0] else -t)),
        'step of -1.00',
    ),
    'time starts late': (
        OLD,
        d.column('timestamp', d.times(lambda t: t + 5)),
        'got 5.000 s at frame 0',
    ),
    'time text': (OLD, d.column('timestamp', ['0'] * LENGTH), "column 'timestamp'"),
    'frames repeat': (
        OLD,
        d.column('frame_index', np.arange(LENGTH) // 2),
        'frame_index 0 to 24 in episode 1',
    ),
    'frames not whole': (
        OLD,
        d.column('frame_index', np.arange(LENGTH) / 2),
        'expected whole numbers',
    ),
    'rows of another': (OLD, d.column('episode_index', np.zeros(LENGTH, int)), 'got 0'),
    'episode a text': (OLD, d.column('episode_index', ['1'] * LENGTH), 'readable parquet'),
    'task unknown': (OLD, d.column('task_index', np.full(LENGTH, 7)), 'in episode 1, got 7'),
    'task index null': (OLD, d.column('task_index', [None] * LENGTH), "'task_index'"),
}
CELLS = {
    'no video': (OLD, d.remove(VIDEO), 'got nothing there'),
    'video a folder': (OLD, d.as_folder(VIDEO), 'got a folder there'),
    'video empty': (OLD, d.write(VIDEO, b''), 'readable video'),
    'video cut': (OLD, d.keep(VIDEO, 0.6), 'truncated'),
    'video cut to its head': (OLD, d.keep(VIDEO, 0.01), 'readable video'),
    'video a web page': (OLD, d.write(VIDEO, '<html>not found</html>'), 'readable video'),
    'video a list of files': (
        OLD,
        d.write(VIDEO, 'ffconcat version 1.0\nfile episode_000000.mp4\n'),
        'readable video',
    ),
    'video a link': (OLD, d.linked_out(VIDEO), 'got a link to'),
    'video only sound': (OLD, d.sound, 'video stream'),
    'codec unknown': (OLD, d.replace(VIDEO, b'av01', b'zzzz'), 'known video codec'),
    'codec data damaged': (OLD, d.blank(VIDEO, 0.15, 300), 'readable video'),
    'video short': (OLD, d.video(count=10), 'shorter than the rows'),
    'video of 15 fps': (OLD, d.video(fps=15), 'expected 30 frames a second'),
    'video of 60 fps': (OLD, d.video(fps=60, count=60), 'got 60;'),
    'video of other size': (OLD, d.video(size=(48, 64)), 'got 48 x 64 at 0.000 s'),
    'depth as video': (
        OLD,
        d.video(codec='ffv1', pix_fmt='gray16le', format='matroska'),
        'as depth is stored',
    ),
    'no image': (IMAGES, d.image_cell(None), 'episode 1, frame 4'),
    'image without bytes': (
        IMAGES,
        d.image_cell({'bytes': None, 'path': '/etc/hostname'}),
        'episode 1, frame 4',
    ),
    'image is text': (IMAGES, d.image_cell({'bytes': b'hello', 'path': None}), 'cannot identify'),
    'image cut': (
        IMAGES,
        d.image_cell({'bytes': d.encoded(np.zeros((96, 128, 3), np.uint8))[:99]}),
        'frame 4',
    ),
    'image of other size': (
        IMAGES,
        d.image_cell({'bytes': d.encoded(np.zeros((9, 9, 3), np.uint8))}),
        'got 9 x 9',
    ),
    'image of 30 GB': (IMAGES, d.image_cell({'bytes': d.huge_png(100_000, 100_000)}), 'frame 4'),
    'image is depth': (
        IMAGES,
        d.image_cell({'bytes': d.encoded(np.zeros((24, 32), np.uint16))}),
        'as depth is stored',
    ),
    'image starts a program': (
        IMAGES,
        d.image_cell({'bytes': d.encoded(np.zeros((24, 32, 3), np.uint8), 'EPS')}),
        'cannot identify',
    ),
    'image column of texts': (IMAGES, d.column(UP, ['x'] * LENGTH), 'episode 1, frame 0'),
    'image column missing': (IMAGES, d.column(UP, None), "column 'observation.images.up'"),
}
WHOLE, EPISODE = INFO | LISTS, ROWS | CELLS
