"""The encode command with a real tokenizer: killed and started again, in both frameworks, and back into pictures."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny import TINY
from voken_common.checkpoints.conversion.safetensors_file import write_safetensors
from voken_common.checkpoints.steps import Meta
from voken_common.config.loading import validate
from voken_common.data.pipeline import build_validation_batches
from voken_common.data.tokens.shards import TokenShardSource
from voken_common.metrics import psnr
from voken_common.pixels import from_uint8
from voken_jax import encode
from voken_jax.conversion.networks import manifest_of
from voken_jax.tokenizer.api import Tokenizer
from voken_jax.tokenizer.arrays import Arrays
from voken_torch import encode as torch_encode

ROOT = Path(__file__).resolve().parents[2]
COUNT = 600


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A seeded tokenizer in a .safetensors file; the whole command line but --output."""
    config = validate(TINY | {"quantizer": TINY["quantizer"] | {"token_bits": [3, 5]}}, "tiny")
    rng = np.random.default_rng(0)
    shapes = manifest_of(config).generator
    weights = {name: rng.normal(0, 0.2, leaf.shape).astype(np.float32) for name, leaf in shapes.items()}
    file = tmp_path_factory.mktemp("tokenizer") / "tiny.safetensors"
    with file.open("wb") as stream:
        write_safetensors(stream, weights, Meta(config, 0, {}), "raw")
    return file


def command(tokenizer, output, *more):
    size = ["--batch-size", "10", "--samples-per-shard", "20", "--set", f"data.train.crops={COUNT}"]
    return [str(part) for part in ("--checkpoint", tokenizer, "--output", output, *size, *more)]


@pytest.fixture(scope="module")
def undisturbed(tokenizer, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "tokens"
    assert encode.main(command(tokenizer, output)) == 0
    return output


def kill_after(shards, arguments, output):
    """Start the command, and SIGKILL it as soon as so many shards are there."""
    process = subprocess.Popen([sys.executable, "-m", "voken_jax.encode", *arguments], cwd=ROOT)
    try:
        while len(list(output.glob("*.json"))) <= shards:
            assert process.poll() is None, "it finished before it could be killed"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL


def test_killed_and_started_again_the_shards_are_those_of_an_undisturbed_run(tokenizer, undisturbed, tmp_path):
    output = tmp_path / "tokens"
    kill_after(3, command(tokenizer, output), output)
    done = len(list(output.glob("*.json"))) - 1
    assert 3 <= done < COUNT // 20, "killed half way"
    times = {path.name: path.stat().st_mtime_ns for path in output.glob("shard-*.array_record")}
    assert encode.main(command(tokenizer, output)) == 0
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in undisturbed.iterdir())
    for path in undisturbed.iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes(), path.name
    kept = sum((output / name).stat().st_mtime_ns == stamp for name, stamp in times.items())
    assert kept >= done, "finished shards are not written again"
    source = TokenShardSource(output)
    assert len({source[i]["key"] for i in range(len(source))}) == len(source) == COUNT


@pytest.mark.slow
@pytest.mark.parametrize("shards", [0, 1, 8, 20])
def test_killed_at_any_time(tokenizer, undisturbed, tmp_path, shards):
    output = tmp_path / "tokens"
    for more in (0, 1):
        kill_after(shards + more, command(tokenizer, output), output)
    assert encode.main(command(tokenizer, output)) == 0
    for path in undisturbed.iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_two_processes_at_once(tokenizer, undisturbed, tmp_path):
    output = tmp_path / "tokens"
    shares = [command(tokenizer, output, "--process-index", i, "--process-count", 2) for i in range(2)]
    processes = [subprocess.Popen([sys.executable, "-m", "voken_jax.encode", *share], cwd=ROOT) for share in shares]
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in undisturbed.iterdir())
    for path in undisturbed.iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_tokens_are_the_tokenizers(tokenizer, undisturbed):
    loaded = Tokenizer.load(tokenizer)
    source = TokenShardSource(undisturbed)
    assert (source.info.grid, source.info.vocabularies, source.info.classes) == ((8, 8), (8, 32), 8)
    data = loaded.config.data.model_copy(
        update={"validation": loaded.config.data.train.model_copy(update={"crops": COUNT})}
    )
    (batch,) = list(build_validation_batches(data, batch_size=40, max_images=40))
    ids = np.asarray(loaded.encode(batch["image"])).reshape(40, 64)
    tokens = np.stack([source[i]["tokens"] for i in range(40)])
    assert (tokens[..., 0] + 8 * tokens[..., 1] != ids).mean() < 1e-3, "another batch size may turn a near-tie"
    assert [source[i]["label"] for i in range(40)] == batch["label"].tolist()


def test_images_are_spread_over_the_devices(tokenizer):
    loaded = Tokenizer.load(tokenizer)
    images = np.random.default_rng(0).uniform(-1, 1, (16, 16, 16, 3)).astype(np.float32)
    arrays = Arrays(loaded)
    found = arrays.encode(images)
    assert arrays._spread is not None
    assert len(arrays._spread.weights["decoder.conv_out.kernel"].sharding.device_set) == 8
    assert (found != np.asarray(loaded.encode(images))).mean() < 1e-3
    assert Arrays(loaded).encode(images[:9]).shape == (9, 8, 8)


def test_pytorch_writes_the_same_data_set(tokenizer, undisturbed, tmp_path):
    few = ("--set", "data.train.crops=60")
    assert torch_encode.main(command(tokenizer, tmp_path, *few, "--device", "cpu")) == 0
    ours, theirs = TokenShardSource(undisturbed), TokenShardSource(tmp_path)
    assert ours.info.tokenizer == theirs.info.tokenizer, "the fingerprint, too"
    assert (len(theirs), theirs.info.vocabularies) == (60, ours.info.vocabularies)
    differing = [(ours[i]["tokens"] != theirs[i]["tokens"]).mean() for i in range(60)]
    assert np.mean(differing) < 1e-3
    assert [ours[i]["key"] for i in range(60)] == [theirs[i]["key"] for i in range(60)]
    (tmp_path / "shard-00002.json").unlink()
    assert encode.main(command(tokenizer, tmp_path, *few)) == 0, "what one began the other goes on with"


@pytest.mark.parametrize("main", [encode.main, torch_encode.main])
def test_shards_become_the_tokenizers_reconstructions(tokenizer, undisturbed, tmp_path, main):
    arguments = ["--decode", str(undisturbed), "--output", str(tmp_path), "--max-images", "5", "--batch-size", "5"]
    arguments += ["--checkpoint", str(tokenizer)]
    assert main(arguments) == 0
    source, loaded = TokenShardSource(undisturbed), Tokenizer.load(tokenizer)
    tokens = np.stack([source[i]["tokens"] for i in range(5)])
    expected = np.asarray(loaded.decode((tokens[..., 0] + 8 * tokens[..., 1]).reshape(5, 8, 8)))
    pictures = [np.asarray(Image.open(tmp_path / f"{source[i]['key']}.png")) for i in range(5)]
    assert psnr(expected, from_uint8(np.stack(pictures))).min() > 45


def test_another_tokenizer_is_refused(tokenizer, undisturbed, tmp_path, capsys):
    config = Tokenizer.load(tokenizer).config
    weights = {name: np.ones(leaf.shape, np.float32) for name, leaf in manifest_of(config).generator.items()}
    other = tmp_path / "other.safetensors"
    with other.open("wb") as stream:
        write_safetensors(stream, weights, Meta(config, 0, {}), "raw")
    assert encode.main(["--decode", str(undisturbed), "--output", str(tmp_path / "x"), "--checkpoint", str(other)]) == 2
    assert "holds tokens of tokenizer" in capsys.readouterr().err
    assert encode.main(command(other, undisturbed)) == 2
    assert "holds tokens of another run" in capsys.readouterr().err
