"""Seeking lands on the very frame, also where a video has no clean key frames; names in a file may
be no text.
"""

from pathlib import Path

import av
import numpy as np
import pytest

from sigma_jax.data.video.decode import read_frames
from sigma_jax.errors import UserError

FPS, COUNT = 30, 90
KINDS = {
    'closed': 'keyint=20',
    'open groups': 'open-gop=1:keyint=20:bframes=3:scenecut=0',
    'no key frames': 'intra-refresh=1:keyint=20',
}


@pytest.fixture(scope='module')
def videos(tmp_path_factory) -> dict[str, tuple[Path, list[np.ndarray]]]:
    """Files of moving texture, and their frames decoded from the first to the last."""
    texture = (
        np.random.default_rng(0)
        .integers(0, 255, (30, 40, 3))
        .repeat(2, 0)
        .repeat(2, 1)
        .astype(np.uint8)
    )
    found = {}
    for kind, options in KINDS.items():
        path = tmp_path_factory.mktemp('videos') / 'video.mp4'
        with av.open(str(path), 'w') as container:
            stream = container.add_stream('libx264', rate=FPS, options={'x264-params': options})
            stream.height, stream.width, stream.pix_fmt = 60, 80, 'yuv420p'
            for i in range(COUNT):
                image = av.VideoFrame.from_ndarray(np.roll(texture, 3 * i, 1), format='rgb24')
                container.mux(stream.encode(image))
            container.mux(stream.encode())
        with av.open(str(path)) as container:
            found[kind] = (
                path,
                [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)],
            )
    return found


@pytest.mark.parametrize('first', [0, 1, 19, 20, 21, 41, 63, 83, 89])
@pytest.mark.parametrize('kind', KINDS)
def test_a_frame_is_the_same_wherever_reading_starts(kind: str, first: int, videos) -> None:
    path, frames = videos[kind]
    wanted = [first, *range(first + 3, COUNT, 7)]
    read = list(read_frames(path, [i / FPS for i in wanted], FPS, (COUNT - 1) / FPS, size=(60, 80)))
    assert len(read) == len(wanted)
    assert all(np.array_equal(frame, frames[i]) for i, frame in zip(wanted, read, strict=True))


def test_names_in_a_file_may_be_no_text(videos, tmp_path) -> None:
    path, frames = videos['closed']
    (tmp_path / 'v.mp4').write_bytes(
        path.read_bytes().replace(b'VideoHandler', b'Video\xff\xff\xff\xffler')
    )
    assert np.array_equal(next(read_frames(tmp_path / 'v.mp4', [0.0], FPS, 0.0)), frames[0])


def test_a_hole_is_an_error_and_not_painted_over(videos, tmp_path) -> None:
    path, frames = videos['closed']
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 400] = bytes(400)
    (tmp_path / 'v.mp4').write_bytes(data)
    read = []
    with pytest.raises(
        UserError,
        match=r'readable video at .*v.mp4 \(episode 7\), got "Invalid '
        r'data',
    ):
        for frame in read_frames(
            tmp_path / 'v.mp4', [i / FPS for i in range(COUNT)], FPS, 0.0, name='episode 7'
        ):
            read.append(frame)
    assert len(read) > 10 and all(
        np.array_equal(one, other) for one, other in zip(read, frames, strict=False)
    )
