"""A tokenizer and metric networks in NumPy: what evaluation does around them can be tested in milliseconds."""

from types import SimpleNamespace

import numpy as np

from voken_common.evaluation.engine import Features

WIDTH, SPATIAL, CLASSES = 2048, 2023, 12


class FakeWeights:
    """Weights whose files need not exist."""

    lpips = "auto"
    published_inception = False

    def __init__(self, sha256="0" * 64):
        self._sha256 = sha256

    def inception(self):
        return SimpleNamespace(sha256=self._sha256)


class FakeEngine:
    """Features that are cheap functions of the pixels; the wide ones are zero but for a few columns."""

    framework = "fake 1.0"

    def __init__(self, width=WIDTH):
        self.weights, self.width = FakeWeights(), width
        self.batches = []

    def inception(self, images, resize):
        images = images.astype(np.float32) / 127.5 - 1 if images.dtype == np.uint8 else images
        self.batches.append(len(images))
        rows = images.reshape(len(images), -1)
        few = np.stack([rows[:, i::7].mean(axis=1) for i in range(7)], axis=1).astype(np.float32)
        pool3, spatial = np.zeros((len(rows), self.width), np.float32), np.zeros((len(rows), SPATIAL), np.float32)
        pool3[:, :7], spatial[:, :7] = few, few**2
        return Features(pool3, spatial, np.concatenate([few, -few[:, :5]], axis=1) * 9)

    def lpips(self, net, first, second):
        power = 2 if net == "vgg" else 1
        return (np.abs(first - second) ** power).mean(axis=(1, 2, 3)).astype(np.float32)


class FakeTokenizer:
    """Tokens are the brightness of 4x4 blocks in 16 steps."""

    downsampling = 4

    def __init__(self, config):
        self.config = config

    def fingerprint(self):
        return "f" * 64

    def encode(self, images):
        batch, height, width, _ = images.shape
        blocks = images.reshape(batch, height // 4, 4, width // 4, 4, 3).mean(axis=(2, 4, 5))
        return np.clip(((blocks + 1) * 8).astype(np.int32), 0, 15)

    def decode(self, ids):
        grey = (ids.astype(np.float32) + 0.5) / 8 - 1
        return np.repeat(np.repeat(grey, 4, axis=1), 4, axis=2)[..., None].repeat(3, axis=-1)


class FakeVideoEngine(FakeEngine):
    """With features of clips."""

    def video(self, clips):
        self.batches.append(len(clips))
        rows = clips.reshape(len(clips), -1)
        return np.stack([rows[:, i::5].mean(axis=1) for i in range(5)], axis=1).astype(np.float32)


class FakeVideoTokenizer(FakeTokenizer):
    """The image tokenizer, frame by frame."""

    def encode(self, images):
        return super().encode(images.reshape(-1, *images.shape[2:])).reshape(*images.shape[:2], 4, 4)

    def decode(self, ids):
        frames = super().decode(ids.reshape(-1, *ids.shape[2:]))
        return frames.reshape(*ids.shape[:2], *frames.shape[1:])
