"""A tiny video run, and files of moving pictures."""

from fractions import Fraction

import av
import numpy as np

from tests.support.tiny import TINY

VIDEO = TINY | {
    "name": "tiny_video",
    "model": TINY["model"] | {"network": "magvit2_video", "channel_multipliers": [2, 1]},
    "discriminator": {"kind": "patchgan_3d", "channels": 4, "layers": 1},
}
"""2 x 2 pixels and 2 frames a token; `video_run` fills in the data."""


def picture(number, height=48, width=64):
    """Smooth colours, so that H.264 keeps them; the blue tells the number of the frame."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:, :, 0] = np.linspace(40, 220, width)
    frame[:, :, 1] = np.linspace(40, 220, height)[:, None]
    frame[:, :, 2] = (20 + 9 * number) % 256
    return frame


def write_video(path, count, sides=(48, 64), rate=10, times=None, sound=False, codec="libx264", pixels="yuv420p"):
    """A file as other programs make them."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = sides[1], sides[0], pixels
        stream.options = {"crf": "8"}
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream("aac", rate=16000) if sound else None
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number, *sides), format="rgb24").reformat(format=pixels)
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for number in range(8 if audio else 0):
            noise = np.random.default_rng(number).uniform(-0.1, 0.1, (1, 1024)).astype(np.float32)
            packet = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            packet.sample_rate, packet.pts = 16000, 1024 * number
            container.mux(audio.encode(packet))
        if audio:
            container.mux(audio.encode())
    return path


def video_run(folder, **changes):
    """The tiny run on the videos of a folder, as plain data."""
    source = {"kind": "video_folder", "path": str(folder), "frames": 5}
    data = {"train": source, "validation": source, "image_size": 16, "resize": "cv2", "workers": 0}
    return VIDEO | {"data": data, "training": {"batch_size": 8, "steps": 6, "log_every": 3}} | changes
