"""Published models by name, from a server that speaks the hub's protocol to its real client, in both frameworks."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import tiny_published
from tests.support.golden_cases import FORWARD_FLOAT32, assert_close
from tests.support.hub_server import HubServer
from voken_common.config.inference import for_inference
from voken_common.config.loading import load_any_config
from voken_common.data.tokens.format import fingerprint, fingerprint_of
from voken_common.published import models
from voken_jax.conversion import torch_bridge

# Every test loads frameworks in processes of their own.
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
FEW = ("imagenet_lfqgan_128_L", "imagenet_lfqgan_128_B", "imagenet_ibqgan_1024", "open_magvit2_generator_B")


class Hub:
    """The server with every published file in small, and what each model must compute."""

    def __init__(self, folder):
        self.server, self.configs = HubServer(), folder / "configs"
        self.configs.mkdir()
        tiny_published.write_configs(self.configs)
        self.expected = {}
        for model in tiny_published.MODELS:
            content, sets, stage = tiny_published.published_file(model, self.configs)
            self.server.add(model.repository, model.file, content)
            weights = {name: value.numpy() for name, value in (sets.get("ema") or sets["raw"]).items()}
            self.expected[model.name] = self.computed(model, weights, stage)

    def computed(self, model, weights, stage):
        config = for_inference(load_any_config(self.configs / f"{model.name}.yaml"))
        if model.family == "generator":
            tokenizer = for_inference(load_any_config(self.configs / f"{model.tokenizer}.yaml"))
            whole = fingerprint_of(config.model.model_dump(mode="json"), weights)
            return {
                "fingerprint": whole,
                "tokenizer": fingerprint(tokenizer, {name: value.numpy() for name, value in stage.items()}),
            }
        found = {"fingerprint": fingerprint(config, weights)}
        if model.family == "image tokenizer":
            found["ids"] = torch_bridge.encode(config, weights, tiny_published.images(config))
            found["images"] = torch_bridge.decode(config, weights, found["ids"])
        return found


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    hub = Hub(tmp_path_factory.mktemp("hub"))
    yield hub
    hub.server.close()


def load(hub, framework, names, folder, **environment):
    """What a process finds that loads these names through the client of the hub."""
    output = folder / "found.npz"
    command = [sys.executable, "-m", "tests.support.load_published", framework, hub.configs, output, *names]
    settings = {
        "HF_ENDPOINT": hub.server.address,
        "HF_HOME": str(folder / "hf"),
        "VOKEN_CACHE": str(folder / "voken"),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(output)
    return {name: {k.split("|")[1]: found[k] for k in found.files if k.split("|")[0] == name} for name in names}


def check(hub, name, found):
    model = models.find(name)
    expected = hub.expected[model.name]
    assert found.keys() == expected.keys(), name
    for key, value in expected.items():
        if key == "images":
            assert_close(found[key], value, name, FORWARD_FLOAT32)
        else:
            np.testing.assert_array_equal(found[key], value, f"{name}: {key}")


def names_of(models_):
    """Every model by its name, and by its repository where that says which."""
    alone = [m.repository for m in models_ if len(models.in_repository(m.repository)) == 1]
    return [model.name for model in models_] + alone


def test_every_name_loads_in_torch_without_jax(hub, tmp_path):
    names = names_of(tiny_published.MODELS)
    for name, found in load(hub, "torch", names, tmp_path).items():
        check(hub, name, found)


@pytest.mark.parametrize("names", [FEW, names_of(tiny_published.MODELS)])
def test_names_load_in_jax(hub, tmp_path, names):
    for name, found in load(hub, "jax", names, tmp_path).items():
        check(hub, name, found)


def test_the_second_load_needs_no_network_and_converts_nothing(hub, tmp_path):
    name = "TencentARC/IBQ-Tokenizer-1024"
    for suffix in ("", "@main", "@v1:imagenet256_1024.ckpt"):
        check(hub, name, load(hub, "torch", [name + suffix], tmp_path)[name + suffix])
    converted = list((tmp_path / "voken" / "converted").rglob("*.safetensors"))
    assert len(converted) == 1, "revisions with the same content share it"
    hub.server.requests.clear()
    check(hub, name, load(hub, "torch", [name], tmp_path, HF_HUB_OFFLINE="1")[name])
    assert not hub.server.requests
    check(hub, name, load(hub, "jax", [name], tmp_path, HF_HUB_OFFLINE="1")[name])
    assert list((tmp_path / "voken" / "converted").rglob("*.safetensors")) == converted, "both frameworks share it"


def test_a_file_brought_by_hand_is_found(hub, tmp_path):
    model = models.find("imagenet_ibqgan_1024")
    place = tmp_path / "voken" / "checkpoints" / model.repository / model.file
    place.parent.mkdir(parents=True)
    place.write_bytes(hub.server.files[model.repository][model.file])
    hub.server.requests.clear()
    check(hub, model.name, load(hub, "torch", [model.name], tmp_path)[model.name])
    assert not hub.server.requests
