"""What goes wrong between a name and a checkpoint: each has its message, and leaves nothing half-written."""

import errno
import io
from pathlib import Path

import pytest
import torch

from tests.support.hub_server import COMMIT, HubServer
from voken_common.checkpoints.hub import converted, download
from voken_common.checkpoints.hub.download import HubError
from voken_common.checkpoints.hub.reference import HubReference, parse
from voken_common.checkpoints.steps import KindError
from voken_common.errors import CheckpointError, DamagedError
from voken_torch.generator.api import Generator
from voken_torch.tokenizer.api import Tokenizer

GOLDEN = Path(__file__).parents[2] / "golden" / "upstream_lfq_tiny.ckpt"


@pytest.fixture
def server():
    server = HubServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def client(server, tmp_path, monkeypatch):
    """The client of the hub, which read its environment when it was imported."""
    from huggingface_hub import constants

    monkeypatch.setenv("VOKEN_CACHE", str(tmp_path / "voken"))
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    monkeypatch.chdir(tmp_path)


def large_files(folder):
    return [
        path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_size > 1000
    ]


@pytest.mark.parametrize(
    ("name", "fault", "error", "message"),
    [
        (
            "some/one:x.ckpt",
            "wrong hash",
            DamagedError,
            "not what the hub says it is .found sha256 .*It has been removed",
        ),
        ("some/one:x.ckpt", "gated", HubError, "refuses access .403.*gated or private.*HF_TOKEN"),
        (
            "some/one:x.ckpt",
            "private",
            HubError,
            "no file or folder some/one here, and the hub at .* has no repository",
        ),
        ("some/one:x.ckpt", "error", HubError, "cannot be downloaded.*status 503"),
        ("some/one:y.ckpt", None, HubError, "some/one on the hub has no file y.ckpt"),
        ("some/one@v9:x.ckpt", None, HubError, "has no revision v9"),
        ("no/body", None, HubError, "no file or folder no/body here, and the hub at .* has no repository of that name"),
        ("some/empty", None, HubError, "holds no checkpoint .*found: README.md"),
        ("some/two", None, HubError, "holds 2 checkpoints; say which:\n  some/two:a.ckpt\n  some/two:b.pt"),
        ("some/one:../x.ckpt", None, CheckpointError, "expected its path in the repository"),
    ],
)
def test_what_the_hub_cannot_give(server, tmp_path, name, fault, error, message):
    server.add("some/one", "x.ckpt", GOLDEN.read_bytes(), fault)
    server.add("some/empty", "README.md", b"nothing")
    for file in ("a.ckpt", "b.pt"):
        server.add("some/two", file, b"x")
    with pytest.raises(error, match=f"(?s){message}"):
        Tokenizer.load(name)
    assert not large_files(tmp_path)


def test_a_good_file_after_a_bad_one(server, tmp_path):
    server.add("some/one", "x.ckpt", GOLDEN.read_bytes(), "wrong hash")
    with pytest.raises(DamagedError):
        Tokenizer.load("some/one")
    server.faults.clear()
    assert Tokenizer.load("some/one").source == f"some/one@{COMMIT}, file x.ckpt"


@pytest.mark.parametrize("fault", ["truncated", "hanging"])
def test_a_connection_that_breaks_or_hangs(server, tmp_path, fault, monkeypatch):
    from huggingface_hub import file_download

    # The client tries again five times, a second apart.
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(file_download.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    server.add("some/one", "x.ckpt", GOLDEN.read_bytes(), fault)
    with pytest.raises(HubError, match="some/one, file x.ckpt is not on this machine and cannot be downloaded"):
        Tokenizer.load("some/one:x.ckpt")
    assert not large_files(tmp_path)


def test_offline(server, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError) as caught:
        Tokenizer.load("TencentARC/IBQ-Tokenizer-262144")
    place = tmp_path / "voken" / "checkpoints" / "TencentARC" / "IBQ-Tokenizer-262144" / "imagenet256_262144.ckpt"
    for part in (
        "TencentARC/IBQ-Tokenizer-262144, file imagenet256_262144.ckpt (about 1.3 GiB) is not on this machine",
        "the client is offline (HF_HUB_OFFLINE is set)",
        f"Looked in {place} and {tmp_path / 'hf'}",
        f"/imagenet256_262144.ckpt on another machine and put it at {place}",
    ):
        assert part in str(caught.value)
    place.parent.mkdir(parents=True)
    place.write_bytes(GOLDEN.read_bytes())
    with pytest.raises(ValueError, match="name.s. missing"):
        # Found, and refused: it is not the model of that name.
        Tokenizer.load("TencentARC/IBQ-Tokenizer-262144")
    assert not server.requests


@pytest.mark.parametrize("where", ["the hub's cache", "voken's cache"])
def test_a_full_disk(server, tmp_path, monkeypatch, where):
    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    server.add("some/one", "x.ckpt", GOLDEN.read_bytes())
    if where == "voken's cache":
        monkeypatch.setattr(converted, "write_for_inference", full)
        message = "could not be converted: .* cannot be written .there is no room.* VOKEN_CACHE"
    else:
        from huggingface_hub import file_download

        monkeypatch.setattr(file_download, "http_get", full)
        message = "could not be written to .*No space left.* HF_HOME"
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.load("some/one")
    assert not list(tmp_path.rglob("*.safetensors*")) + list(tmp_path.rglob("*.incomplete"))


def test_a_published_model_is_loaded_as_itself_or_not_at_all(server):
    state = torch.load(GOLDEN, weights_only=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    server.add("TencentARC/IBQ-Tokenizer-1024", "imagenet256_1024.ckpt", buffer.getvalue())
    with pytest.raises(ValueError, match="IBQ-Tokenizer-1024.* name.s. missing, 32 unexpected"):
        Tokenizer.load("imagenet_ibqgan_1024")
    server.add("TencentARC/IBQ-AR-B", "AR_256_B.ckpt", buffer.getvalue())
    with pytest.raises(CheckpointError, match="holds the weights of a tokenizer; expected ibq_generator_B"):
        Generator.load("TencentARC/IBQ-AR-B")
    with pytest.raises(KindError):
        Generator.load(GOLDEN)


def test_what_is_pushed_loads_by_name(server, tmp_path):
    tokenizer = Tokenizer.load(GOLDEN)
    assert tokenizer.push_to_hub("me/mine").endswith(COMMIT)
    assert set(server.pushed["me/mine"]) == {"README.md", "config.yaml", "model.safetensors", "picture.png"}
    card = server.pushed["me/mine"]["README.md"].decode()
    assert 'Tokenizer.load("me/mine")' in card
    assert "voken_torch" in card
    assert "voken_jax" in card
    assert Tokenizer.load("me/mine").fingerprint() == tokenizer.fingerprint()
    assert Tokenizer.load(f"me/mine@{COMMIT}").fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", HubReference("a/b")),
        ("a/b@v1", HubReference("a/b", "v1")),
        ("a/b@refs/pr/1:c/d.ckpt", HubReference("a/b", "refs/pr/1", "c/d.ckpt")),
        ("a/b:c.pt", HubReference("a/b", None, "c.pt")),
        ("a/b.ckpt", Path("a/b.ckpt")),
        ("/a/b", Path("/a/b")),
        ("./a", Path("a")),
        ("a/b/c", Path("a/b/c")),
        ("here/model", Path("here/model")),
    ],
)
def test_names_and_paths(tmp_path, text, expected):
    (tmp_path / "here").mkdir()
    assert parse(text) == expected


def test_names_that_say_too_little():
    with pytest.raises(
        CheckpointError, match="holds 2 models; say which(.|\n)*imagenet_256_B.ckpt  .imagenet_lfqgan_256_B"
    ):
        parse("TencentARC/Open-MAGVIT2")
    with pytest.raises(CheckpointError, match="did you mean imagenet_ibqgan_1024"):
        parse("imagenet_ibqgan_102")
    assert parse("imagenet_ibqgan_1024").file == "imagenet256_1024.ckpt"
    assert download.brought_by_hand(parse("imagenet_ibqgan_1024")).name == "imagenet256_1024.ckpt"
