"""Videos with a display matrix: turned as players do, or taken as they are stored."""

import struct

import av
import numpy as np
import pytest

from voken_common.config.schema.data import DataConfig, VideoFolderConfig
from voken_common.data.pipeline import build_validation_batches
from voken_common.data.sources.video import ClipReader

ONE = 1 << 16
MATRICES = {
    0: (ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30),
    90: (0, ONE, 0, -ONE, 0, 0, 48 << 16, 0, 1 << 30),
    180: (-ONE, 0, 0, 0, -ONE, 0, 64 << 16, 48 << 16, 1 << 30),
    270: (0, -ONE, 0, ONE, 0, 0, 0, 64 << 16, 1 << 30),
}
"""Degrees by which a player turns the frames clockwise."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """An MP4 whose left half is red and whose top half is green on top of that, 64 x 48."""
    path = tmp_path_factory.mktemp("videos") / "plain.mp4"
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32, 0], pixels[:24, :, 1] = 250, 250
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "3"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes(), pixels


def turned(stored, folder, degrees):
    """The same with another matrix in the header of its track."""
    data = bytearray(stored[0])
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", *MATRICES[degrees])
    (folder / "a.mp4").write_bytes(bytes(data))
    return folder / "a.mp4"


def corners(pixels):
    """Red and green in the middle of each quarter, as zeros and ones."""
    height, width = pixels.shape[:2]
    rows, columns = (height // 4, 3 * height // 4), (width // 4, 3 * width // 4)
    return [[tuple(int(value > 125) for value in pixels[y, x, :2]) for x in columns] for y in rows]


@pytest.mark.parametrize("degrees", list(MATRICES))
@pytest.mark.parametrize("numbers", [[0], [2, 5]])
def test_frames_stand_upright(stored, tmp_path, degrees, numbers):
    path = turned(stored, tmp_path, degrees)
    expected = np.rot90(stored[1], -degrees // 90)
    for frame in ClipReader().read(str(path), numbers):
        assert frame.shape == expected.shape
        assert corners(frame) == corners(expected)
    for frame in ClipReader(upright=False).read(str(path), numbers):
        assert frame.shape == (48, 64, 3)
        assert corners(frame) == corners(stored[1])


@pytest.mark.parametrize("upright", [True, False])
def test_the_setting_reaches_the_pipeline(stored, tmp_path, upright):
    turned(stored, tmp_path, 180)
    source = VideoFolderConfig(path=str(tmp_path), frames=3, upright=upright)
    (batch,) = build_validation_batches(
        DataConfig(train=source, validation=source, image_size=48, workers=0), batch_size=1
    )
    clip = (batch["video"][0, 0] + 1) * 127.5
    crop = np.rot90(stored[1], 2 if upright else 0)[:, 8:56]
    assert corners(clip) == corners(crop)
