"""Videos with odd clocks: each row has its own frame, or the file is refused; a neighbour is never
taken.
"""

import contextlib
import json
from fractions import Fraction
from pathlib import Path

import av
import pytest

from sigma_jax.data.lerobot.dataset import open_dataset
from sigma_jax.data.shards.prepare import prepare
from sigma_jax.data.sources import Renamed
from sigma_jax.data.video.spare_frames import spare_notes
from sigma_jax.errors import UserError
from tests.data_pipeline import films, lerobot_reference, recordings

LENGTHS = [30, 28, 32]
NO_EDITS = {'use_editlist': '0'}
MILLI = Fraction(1, 1000)
THIRD = Fraction(1, 90)


def h264(**more) -> dict:
    return {'codec': 'libx264', 'options': {'g': '8', 'bf': '0'}} | more


def late(frames: int, **more) -> dict:
    return h264(pts=list(range(frames, frames + sum(LENGTHS)))) | more


QUIET = 'keyint=8:min-keyint=8:log-level=none'
RIGHT = {
    'no B-frames': h264(),
    'B-frames': h264(options={'g': '8', 'bf': '3'}),
    'B-frames, negative offsets': h264(
        options={'g': '8', 'bf': '3'}, container={'movflags': 'negative_cts_offsets', **NO_EDITS}
    ),
    'late, but written from 0 on': late(1, container={**NO_EDITS, 'avoid_negative_ts': 'disabled'}),
    'one group': h264(options={'g': '500'}),
    'fragments': h264(container={'movflags': 'frag_keyframe+empty_moov'}),
    'hevc, open groups': {
        'codec': 'libx265',
        'options': {'x265-params': f'{QUIET}:open-gop=1:bframes=3'},
    },
    'hevc, 10 bits': {'codec': 'libx265', 'pix': 'yuv420p10le', 'options': {'x265-params': QUIET}},
    'av1, groups of 2': {'codec': 'libsvtav1', 'options': {'g': '2', 'crf': '30'}},
    'vp9': {'codec': 'libvpx-vp9', 'options': {'g': '12', 'deadline': 'realtime', 'cpu-used': '8'}},
    '15 a second': {'fps': 15} | h264(options={'g': '8', 'bf': '2'}),
    '50 a second': {'fps': 50} | h264(),
    '29.97 a second on both sides': {'fps': 30000 / 1001} | h264(),
    '29.97 in a short file': h264(base=Fraction(1001, 30000)),
    'starts stated a fifth of a frame late': h264(late=0.2 / 30),
    'a fifth of a frame late': h264(pts=[5 * i + 1 for i in range(90)], base=Fraction(1, 150)),
    'late, and so are the starts': late(2, late=2 / 30),
    'part of the episodes, a clock from 0': h264(listed=[1]),
}
REFUSED = {
    'B-frames without an edit list': (
        h264(options={'g': '8', 'bf': '3'}, container=NO_EDITS),
        {0: 'got it at 0.067 s, +2.00 frames off', 2: 'got it at 0.067 s'},
    ),
    'late by one': (late(1), {e: 'got it at 0.033 s' for e in range(3)}),
    'late by two': (late(2), {e: 'got it at 0.066 s' for e in range(3)}),
    'late by nine': (late(9), {1: 'got it at 0.3'}),
    'late by one, hevc': (
        late(1, codec='libx265', options={'x265-params': QUIET}),
        {2: 'got it at 0.033 s'},
    ),
    'late by two, one episode listed': (late(2, listed=[2]), {2: 'got it at 0.066 s'}),
    'starts stated 0.4 of a frame late': (
        h264(late=0.4 / 30),
        {e: 'expected a frame at' for e in range(3)},
    ),
    'a frame is skipped, but none is missing': (
        h264(pts=[*range(40), *range(41, 91)]),
        {1: 'expected frame 41 of', 2: 'got frame 57 of 90; its clock skips'},
    ),
    'a frame in between': (
        h264(base=THIRD, pts=[3 * i - 2 * (i >= 40) for i in range(90)]),
        {1: 'expected a frame at', 2: 'expected a frame at'},
    ),
    'two frames in between, then a step of three': (
        h264(base=THIRD, pts=[3 * i - 2 * (i == 33) - 3 * (i > 33) for i in range(90)]),
        {2: 'expected frame 58 of'},
    ),
}


def shown(root: Path, index: int, rows=None) -> list[int]:
    return [
        films.number_of(frame)
        for frame in open_dataset(root).read_episode(index).frames(films.CAMERA, rows)
    ]


def first_row(index: int) -> int:
    return sum(LENGTHS[:index])


@pytest.mark.parametrize('name', RIGHT)
def test_every_row_has_its_own_frame(name: str, tmp_path) -> None:
    root = films.write_dataset(tmp_path, LENGTHS, **RIGHT[name])
    for index in open_dataset(root).episodes:
        first, length = first_row(index), LENGTHS[index]
        assert shown(root, index) == list(range(first, first + length))
        assert shown(root, index, [0, 5, 24]) == [first, first + 5, first + 24]


@pytest.mark.parametrize('name', REFUSED)
def test_a_clock_that_shows_a_neighbour_is_refused(name: str, tmp_path) -> None:
    film, words = REFUSED[name]
    root = films.write_dataset(tmp_path, LENGTHS, **film)
    for index in open_dataset(root).episodes:
        if index in words:
            with pytest.raises(UserError, match=rf'episode {index}\)') as caught:
                shown(root, index, [0, 5, 24])
            assert words[index] in str(caught.value)


def test_episodes_before_a_skip_are_read_and_the_others_can_be_left_out(tmp_path) -> None:
    film, _ = REFUSED['a frame is skipped, but none is missing']
    root = films.write_dataset(tmp_path / 'data', LENGTHS, **film)
    assert shown(root, 0) == list(range(30))
    settings = {
        'cameras': (films.CAMERA,),
        'split_fractions': (1.0, 0.0, 0.0),
        'on_bad_episode': 'skip',
    }
    prepare(recordings.config(root, **settings), tmp_path / 'out')
    meta = json.loads((tmp_path / 'out' / 'meta.json').read_text())
    assert meta['splits']['train'] == [0]


def test_a_missing_frame_is_a_gap_and_nothing_moves(tmp_path) -> None:
    """A file that lacks frame 40 and shows the others in time: rows 41 and on are where they
    were.
    """
    root = films.write_dataset(tmp_path, LENGTHS, **h264())
    kept = [i for i in range(90) if i != 40]
    films.write_film(root / films.VIDEO.format(0), kept, **h264(pts=kept))
    assert shown(root, 1, [0, 5, 24]) == [30, 35, 54] and shown(root, 2) == list(range(58, 90))
    with pytest.raises(UserError, match='expected a frame at 1.333 s'):
        shown(root, 1, [8, 10, 12])


def test_shaken_frames_are_not_called_a_short_video(tmp_path) -> None:
    film = h264(base=Fraction(1, 3000), pts=[100 * i + 30 * (i % 2) for i in range(90)])
    root = films.write_dataset(tmp_path, LENGTHS, **film)
    for rows, time in (([0, 1, 5], 0.033), ([2, 3], 0.1)):
        with pytest.raises(
            UserError, match=f'expected a frame at {time:.3f} s .* the clock is shaken'
        ) as caught:
            shown(root, 0, rows)
        assert 'shorter' not in str(caught.value)


@pytest.mark.parametrize(
    ('numbers', 'listed', 'frames'),
    [
        (sorted([*range(90), 40]), None, 91),
        ([*range(90), 89, 89], None, 92),
        ([0, *range(90)], [0, 1], 91),
        (range(90), None, 0),
        (range(90), [1, 2], 0),
    ],
)
def test_spare_frames_are_noted(numbers, listed: list[int] | None, frames: int, tmp_path) -> None:
    """They may lie anywhere; those before the episodes that are listed are no spare ones."""
    root = films.write_dataset(tmp_path / 'data', LENGTHS, **h264(listed=listed or [0, 1, 2]))
    films.write_film(root / films.VIDEO.format(0), numbers, **h264())
    config = recordings.config(root, cameras=(films.CAMERA,), split_fractions=(1.0, 0.0, 0.0))
    notes = prepare(config, tmp_path / 'out').meta.notes
    rows = 58 if listed else 90
    said = [f'{films.VIDEO.format(0)} holds {frames} frames for {rows} rows; where the spare ones']
    assert [note[: len(said[0])] for note in notes] == (said if frames else [])


def test_a_few_files_with_spare_frames_are_named_and_the_others_counted(tmp_path) -> None:
    """Format v2.1, and a camera under another name."""
    root, camera = (
        recordings.record(tmp_path, (8, 9, 10, 11, 12), kind='video'),
        recordings.CAMERAS[0],
    )
    for index in range(5):
        frames = [recordings.camera_image(index, i, camera) for i in range(8 + index + 2)]
        recordings.write_video(root / recordings.video_path(index, camera), frames)
    notes = spare_notes(
        Renamed(open_dataset(root), {'top': camera}, ''), ('top', recordings.CAMERAS[1])
    )
    assert len(notes) == 4 and notes[-1] == 'and so do 2 more videos'
    assert notes[1].startswith(f'{recordings.video_path(1, camera)} holds 11 frames for 9 rows;')


@pytest.mark.parametrize('lost', [[40], [3], [31, 61], [89]])
def test_lost_frames_without_a_gap_put_every_episode_of_the_file_in_doubt(
    lost: list[int], tmp_path
) -> None:
    """Images one after another, fewer than rows: all after the lost one are those of another
    row.
    """
    root = films.write_dataset(tmp_path / 'data', LENGTHS, **h264())
    films.write_film(
        root / films.VIDEO.format(0), [i for i in range(90) if i not in lost], **h264()
    )
    for index in range(3):
        with pytest.raises(
            UserError,
            match=rf'expected 90 frames .*episode {index}.* got '
            rf'{90 - len(lost)} that',
        ):
            shown(root, index, [0, 1])
    settings = {
        'cameras': (films.CAMERA,),
        'split_fractions': (1.0, 0.0, 0.0),
        'on_bad_episode': 'skip',
    }
    with pytest.raises(
        UserError,
        match=r'episode 0: expected 90 frames .* \| episode 2: '
        r'.*data\.train_episodes',
    ):
        prepare(recordings.config(root, **settings), tmp_path / 'out')


def test_a_gap_explains_only_the_frames_that_it_spans(tmp_path) -> None:
    root = films.write_dataset(tmp_path, LENGTHS, **h264())
    kept = [i for i in range(90) if i not in (40, 70)]
    films.write_film(root / films.VIDEO.format(0), kept, **h264(pts=[i - (i > 40) for i in kept]))
    with pytest.raises(
        UserError, match='expected 90 frames .* got 88 that end 1 before the last row'
    ):
        shown(root, 2, [0, 5])


def test_another_file_keeps_its_episodes_where_one_lost_a_frame(tmp_path) -> None:
    """Format v2.1, a file an episode."""
    root = recordings.record(tmp_path, (12, 10), kind='video')
    camera = recordings.CAMERAS[0]
    frames = [recordings.camera_image(1, i, camera) for i in range(10) if i != 4]
    recordings.write_video(root / recordings.video_path(1, camera), frames)
    assert len(list(open_dataset(root).read_episode(0).frames(camera, [0, 11]))) == 2
    with pytest.raises(
        UserError, match='expected 10 frames .* got 9 that end 1 before the last row'
    ):
        list(open_dataset(root).read_episode(1).frames(camera, [0, 1]))


@pytest.mark.parametrize('listed', [None, [2]])
def test_a_rate_that_slips_by_a_whole_frame_is_refused_where_it_hits_one(
    listed: list[int] | None, tmp_path
) -> None:
    """29.97 frames a second called 30: at the time of row 1000 is frame 999, to a tenth of a
    millisecond.
    """
    listed = listed or [0, 1, 2]
    film = h264(
        base=Fraction(1001, 30000), options={'preset': 'ultrafast', 'g': '250'}, listed=listed
    )
    root = films.write_dataset(tmp_path, [200, 800, 20], **film)
    with pytest.raises(UserError, match=r'not 30 a second|got 29\.97'):
        shown(root, 2, [0, 1, 9])
    if 0 in listed:
        assert shown(root, 0, [0, 99, 199]) == [0, 99, 199]


@pytest.mark.parametrize('pts', [[*range(1, 1800, 20), 1900], [0] * 30 + [3000] * 61])
def test_a_clock_without_a_rate_is_refused_in_a_sentence(pts: list[int], tmp_path) -> None:
    root = films.write_dataset(tmp_path, [30, 20], **h264(options={'g': '1'}))
    # the writer takes no second image at one time
    with contextlib.suppress(av.error.FFmpegError):
        films.write_film(
            root / films.VIDEO.format(0), range(len(pts)), **h264(pts=pts, base=Fraction(1, 9000))
        )
    with pytest.raises(UserError, match='expected'):
        shown(root, 1, [0, 5, 19])


@pytest.mark.parametrize(
    ('suffix', 'codec'), [('mkv', 'libx264'), ('webm', 'libvpx-vp9'), ('webm', 'libsvtav1')]
)
def test_other_containers(suffix: str, codec: str, tmp_path) -> None:
    """Matroska keeps milliseconds only."""
    root = films.write_dataset(tmp_path, LENGTHS)
    place = 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.' + suffix
    recordings.edit_info(root, video_path=place)
    path = (root / films.VIDEO.format(0)).with_suffix(f'.{suffix}')
    options = {'g': '8', 'crf': '30'} | (
        {'deadline': 'realtime', 'cpu-used': '8'} if 'vpx' in codec else {}
    )
    films.write_film(path, range(90), codec=codec, options=options)
    assert shown(root, 2) == list(range(58, 90)) and shown(root, 1, [0, 27]) == [30, 57]
    films.write_film(path, range(90), codec=codec, options=options, pts=list(range(2, 92)))
    with pytest.raises(UserError, match=r'got it at 0\.06[67] s'):
        shown(root, 1, [0, 27])


@pytest.mark.parametrize('start', [0, 1, 3])
def test_a_file_for_each_episode(start: int, tmp_path) -> None:
    """Format v2.1."""
    root = recordings.record(tmp_path, (12, 10), kind='video')
    path = root / recordings.video_path(1, recordings.CAMERAS[0])
    frames = [recordings.camera_image(1, i, recordings.CAMERAS[0]) for i in range(10)]
    recordings.write_video(path, frames, first=start)
    episode = open_dataset(root).read_episode(1)
    if start:
        with pytest.raises(UserError, match='expected the first frame of'):
            list(episode.frames(recordings.CAMERAS[0], [0]))
    else:
        said = [round(frame[..., 0].mean() / 20) for frame in episode.frames(recordings.CAMERAS[0])]
        assert said == list(range(10))


@pytest.mark.reference
def test_no_frame_differs_from_one_on_which_both_readers_of_lerobot_agree(tmp_path) -> None:
    """What LeRobot reads by torchcodec and by PyAV alike is read here, or refused where a file
    skips though it holds a frame for every row. LeRobot opens no part of the episodes."""
    known = {name: film for name, film in RIGHT.items() if 'listed' not in film}
    known |= {name: film for name, (film, _) in REFUSED.items() if 'listed' not in film}
    roots = [
        films.write_dataset(tmp_path / str(n), LENGTHS, **film)
        for n, film in enumerate(known.values())
    ]
    rows, agreed = [0, 5, 24], 0
    for name, root, theirs in zip(
        known, roots, lerobot_reference.images(roots, films.CAMERA, rows), strict=True
    ):
        for index in range(len(LENGTHS)):
            both = zip(theirs['torchcodec'][index], theirs['pyav'][index], strict=True)
            said = [
                None if x is None or y is None else {*map(films.number_of, (x, y))} for x, y in both
            ]
            try:
                ours = shown(root, index, rows)
            except UserError:
                assert (
                    all(numbers is None or len(numbers) > 1 for numbers in said)
                    or 'skipped' in name
                ), (name, index)
                continue
            for frame, numbers in zip(ours, said, strict=True):
                assert numbers is None or len(numbers) > 1 or numbers == {frame}, (name, index)
                agreed += numbers == {frame}
    assert agreed >= 100, 'of 234'
