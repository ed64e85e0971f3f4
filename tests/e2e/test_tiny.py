"""The tokenizer that comes along: it loads by its name in both frameworks, and is what its card says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from voken_common.metrics import psnr
from voken_common.published.bundled import bundled
from voken_common.quickstart.comparison import compare, held_out_crops

FILE = bundled("tiny")
CARD = FILE.with_name("README.md")


@pytest.fixture(scope="module")
def in_jax():
    from voken_jax.tokenizer.api import Tokenizer

    return Tokenizer.load("tiny")


@pytest.fixture(scope="module")
def crops():
    return held_out_crops()


@pytest.fixture(scope="module")
def ids(in_jax, crops):
    return np.asarray(in_jax.encode(crops))


def test_at_most_three_megabytes():
    assert FILE.stat().st_size <= 3_000_000


def test_other_names_are_not_bundled():
    assert bundled("Tiny") is None
    assert bundled("tiny/../tiny") is None


def test_a_file_of_that_name_goes_first(tmp_path, monkeypatch):
    from voken_common.checkpoints.hub.reference import parse

    assert parse("tiny") == FILE
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert parse("tiny") == Path("tiny")


@pytest.mark.slow
def test_figures_of_the_card(in_jax, crops, ids):
    ours, kmeans = compare("tiny", crops, np.asarray(in_jax.decode(ids)), in_jax.downsampling, in_jax.codebook_size)
    text = CARD.read_text()
    stated = re.search(r"\| tiny \| [\d.]+ \| ([\d.]+) \| ([\d.]+) \|", text)
    assert stated, "the card has a row of the table"
    assert float(stated[1]) == pytest.approx(ours.psnr.mean(), abs=0.02)
    assert float(stated[2]) == pytest.approx(ours.psnr.min(), abs=0.06)
    assert f"| k-means, 4x4 patches | {kmeans.bits_per_pixel:.3f} | {kmeans.psnr.mean():.2f} |" in text
    assert str(Path("scripts") / "train_tiny.py") in text


@pytest.mark.slow
def test_frameworks_agree(in_jax, crops, ids):
    from voken_torch.tokenizer.api import Tokenizer

    in_torch = Tokenizer.load("tiny")
    images = torch.tensor(crops).movedim(-1, 1)
    again = in_torch.encode(images)
    # Two codes may be nearest but for rounding.
    assert (again.numpy() != ids).mean() < 1e-3
    decoded = in_torch.decode(torch.tensor(ids)).movedim(1, -1).numpy()
    np.testing.assert_allclose(decoded, np.asarray(in_jax.decode(ids)), atol=2e-4)
    assert in_torch.fingerprint() == in_jax.fingerprint()
    assert psnr(crops, decoded).min() > 20
