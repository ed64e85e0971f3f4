"""Files from strangers, each with a payload that would leave its mark outside of where it may: nothing does."""

import io
import json
import os
import stat
import sys
import types
import unicodedata
import zipfile

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin

from tests.support.tar_sets import encoded, write_set, write_tar
from tests.support.tiny import TINY
from voken_common.atomic_write import replacing
from voken_common.checkpoints import torch_pickle
from voken_common.checkpoints.lock import RunLock
from voken_common.checkpoints.steps import remove_half_written
from voken_common.commands import main as command
from voken_common.config.loading import ConfigError, load_any_config, validate
from voken_common.config.schema.data import DataConfig, ImageNetTarConfig, TarConfig, TarSetConfig, TFDSConfig
from voken_common.data.decode import decode_image
from voken_common.data.errors import DataError, ImageDecodeError
from voken_common.data.sources.build import build_source
from voken_common.data.sources.folder import ImageFolder
from voken_common.data.sources.imagenet_tar import ImageNetTar
from voken_common.data.sources.video import ClipReader
from voken_common.data.storage.array_file import write_arrays
from voken_common.data.tar import prepare
from voken_common.data.tar.check import CheckOptions, image_problem
from voken_common.data.tar.index import TarIndex
from voken_common.data.tokens.decode import decode_dataset
from voken_common.data.tokens.requested import data_config
from voken_common.errors import CheckpointError, RefusedError
from voken_common.sampling.npz import NpzWriter
from voken_torch.checkpoints.torch import find_step, read

CLEAR = "\x1b[2J\x1b[1;1H\x9b31m\u202eall is well\rsafe"
NAMES = (".profile", "authorized_keys", "run.lock", "notes.txt", "1.pt")


def snapshot(folder):
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }


@pytest.fixture(autouse=True)
def outside(tmp_path):
    """A folder that no test names as its own; whatever changes in it is a finding."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_text(f"the user's {name}")
    (folder / "folder").mkdir()
    (folder / "folder" / "kept").write_text("kept")
    before = snapshot(folder)
    yield folder
    assert snapshot(folder) == before


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def age(folder):
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (1, 1))


# Places that a checkpoint, an index or a configuration names


def options(*arguments):
    return command.build_parser(command.find("encode")).parse_args(["--output", "x", *arguments])


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "image_folder", "path": "reference://x"},
        {"kind": "tar", "sets": [{"index": "x.index", "location": "reference://::file:///x.json"}]},
        {"kind": "image_folder", "path": "/", "list_cache": "~/.profile"},
        {"kind": "tfds", "name": "x", "split": "train", "data_dir": "/x"},
    ],
)
def test_the_data_section_of_a_checkpoint_is_not_followed(source, home):
    config = validate(TINY | {"data": {**TINY["data"], "train": source}}, "x")
    with pytest.raises(ConfigError, match="what it says of places is not followed"):
        data_config(options(), config)
    (home / "a.png").write_bytes(encoded(1))
    found = data_config(options("--data", str(home)), config)
    assert found.train.path == str(home)
    assert found.train.list_cache is None


@pytest.mark.parametrize(
    "url",
    [
        "reference://x",
        "simplecache::memory://x",
        "zip://a.tar::file:///x.zip",
        "jinja://x",
        "memory://x::reference://y",
        "memory://a/file://b",
        "ssh://host/x",
        "github://a:b@c/",
    ],
)
def test_only_stores_are_opened(url, home):
    index = prepared(home)
    with pytest.raises(DataError, match="is not opened: expected one URL|says that its tars are at"):
        TarIndex(index, url).check()
    rewrite(index, location=url)
    with pytest.raises(DataError, match="is not opened|not below the folder of the index"):
        build_source(TarConfig(sets=(TarSetConfig(index=index),)))
    assert prepare.main([url, "--output", str(home / "out"), "--workers", "0"]) == 1


def prepared(home):
    write_set(home / "set", [2])
    assert prepare.main([str(home / "set"), "--output", str(home), "--workers", "0"]) == 0
    return str(home / "set.index")


def rewrite(index, **changes):
    """The same index with other things said in it."""
    from voken_common.data.storage.array_file import map_arrays

    arrays, about = map_arrays(index)
    write_arrays(index, {name: np.array(column) for name, column in arrays.items()}, {**about, **changes})


@pytest.mark.parametrize("place", ["../outside", "/etc", "file:///etc", "~", 7, None])
def test_an_index_is_believed_about_its_own_folder_only(home, place):
    index = prepared(home)
    rewrite(index, location=place)
    with pytest.raises(DataError):
        TarIndex(index)


@pytest.mark.parametrize("name", ["../../outside/x.tar", "/etc/passwd", "", "..", "a\0b", 3])
def test_an_index_names_files_in_its_folder_only(home, name):
    index = prepared(home)
    rewrite(index, tars=[name])
    with pytest.raises(DataError):
        TarIndex(index)


@pytest.mark.parametrize("name", NAMES)
def test_kept_lists_replace_nothing_else(home, outside, name, caplog):
    (home / "images").mkdir()
    (home / "images" / "touch CANARY #.png").write_bytes(encoded(1))
    age(home)
    assert len(ImageFolder(str(home / "images"), list_cache=str(outside / name))) == 1
    write_tar(home / "x.tar", [("touch CANARY #.JPEG", encoded(1))])
    assert len(ImageNetTar(ImageNetTarConfig(path=str(home / "x.tar"), index=str(outside / name)))) == 1
    assert "cannot keep" in caplog.text
    (home / "link.index").symlink_to(outside / name)
    ImageNetTar(ImageNetTarConfig(path=str(home / "x.tar"), index=str(home / "link.index")))


@pytest.mark.parametrize("name", [".bash_login", "authorized_keys2", ".config"])
def test_kept_lists_do_not_become_what_programs_look_for(home, name):
    write_tar(home / "x.tar", [("touch CANARY #.JPEG", encoded(1))])
    ImageNetTar(ImageNetTarConfig(path=str(home / "x.tar"), index=str(home / name)))
    assert not (home / name).exists()


# Names that become paths


class Tokens:
    """Token shards with the keys of an attacker, and a tokenizer that makes grey of them."""

    def __init__(self, keys):
        self._keys = keys
        tokenizer = types.SimpleNamespace(fingerprint="f", name="x", reference="y", bit_order="low")
        self.info = types.SimpleNamespace(tokenizer=tokenizer, vocabularies=(4,), grid=(2, 2))
        self.path, self.config = "x", types.SimpleNamespace(name="x")

    def __len__(self):
        return len(self._keys)

    def __getitem__(self, index):
        return {"key": self._keys[index], "crop": 0, "tokens": np.zeros((4, 1), np.int32), "label": 0}

    def fingerprint(self):
        return "f"

    def decode(self, ids):
        return np.zeros((len(ids), 4, 4, 3), np.float32)


def test_decoded_pictures_stay_below_their_folder(home, outside):
    keys = [
        f"/{outside}/absolute",
        f"//{str(outside).lstrip('/')}/slashes",
        f"///{outside}/{'x' * 300}",
        "../outside/above",
        "a/../../../outside/inner",
        "C:\\x",
        "nul",
        "a\0b",
        "CASE",
        "case",
        "case.png/below",
        "x" * 5000,
        os.fsdecode(b"\xff\xfe"),
        CLEAR,
        "",
        "..",
    ]
    tokens = Tokens(keys)
    assert decode_dataset(tokens, tokens, home / "pictures", batch_size=4, show=False) == len(keys)
    written = [path for path in (home / "pictures").rglob("*") if path.is_file()]
    assert len(written) == len(keys)
    assert all(path.resolve().is_relative_to(home / "pictures") for path in written)
    assert len({str(path).casefold() for path in written}) == len(keys)
    assert [path.name for path in home.iterdir()] == ["pictures"]


def test_decoded_pictures_do_not_go_through_a_link(home, outside):
    (home / "pictures").mkdir()
    (home / "pictures" / "a").symlink_to(outside)
    tokens = Tokens(["a/notes.txt"])
    with pytest.raises(OSError, match="is a link, which is not followed"):
        decode_dataset(tokens, tokens, home / "pictures", show=False)


# Code


def test_features_of_tfds_are_its_own(home, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(str(home))
    (home / "canary_features.py").write_text(f"open({str(home / 'CANARY')!r}, 'w')\n")
    folder = home / "data" / "hostile" / "1.0.0"
    folder.mkdir(parents=True)
    feature = {"pythonClassName": "canary_features.Feature", "jsonFeature": {"json": "{}"}}
    (folder / "features.json").write_text(json.dumps(feature))
    info = {"name": "hostile", "version": "1.0.0", "fileFormat": "array_record", "splits": []}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    config = TFDSConfig(name="hostile", split="train", data_dir=str(home / "data"))
    with pytest.raises(DataError, match=r"names the class canary_features\.Feature"):
        build_source(config)
    assert not (home / "CANARY").exists()
    assert "canary_features" not in sys.modules
    with pytest.raises(DataError, match="without a namespace"):
        build_source(config.model_copy(update={"name": "huggingface:x"}))


def test_images_start_no_programs(home, monkeypatch):
    (home / "bin").mkdir()
    ghostscript = home / "bin" / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {home}/CANARY\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) run\n%%EOF\n"
    (home / "x.jpg").write_bytes(script)
    for source in (home / "x.jpg", script):
        with pytest.raises(ImageDecodeError, match="not an image in a known format"):
            decode_image(source)
    assert image_problem(script, CheckOptions()) == "not an image in a known format"
    assert not (home / "CANARY").exists()


@pytest.mark.parametrize("suffix", ["ico", "jp2", "tga", "pcx", "sgi", "dds", "icns", "im"])
def test_formats_that_nobody_named_are_no_images(suffix):
    from PIL import Image

    stream = io.BytesIO()
    try:
        Image.new("RGB", (32, 32)).save(stream, {"im": "IM", "jp2": "JPEG2000"}.get(suffix, suffix.upper()))
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {suffix}")
    with pytest.raises(ImageDecodeError, match="not an image in a known format"):
        decode_image(stream.getvalue())


class Runs:
    """Leaves its mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.filterwarnings("ignore")
def test_torch_files_run_nothing_and_nobody_advises_it(home):
    file = home / "1.pt"
    torch.save({"format": "voken", "w": torch.ones(2), "x": Runs(home / "CANARY")}, file)
    for reader in (torch_pickle.load, read, find_step):
        with pytest.raises(CheckpointError) as caught:
            reader(file)
        assert "weights_only" not in str(caught.value)
        assert "\x1b" not in str(caught.value)
    assert not (home / "CANARY").exists()


@pytest.mark.parametrize(
    "content",
    [
        "ffconcat version 1.0\nfile secret.avi\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.avi\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ],
)
def test_a_video_opens_no_other_file(home, content):
    av = pytest.importorskip("av")
    with av.open(str(home / "secret.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for frame in [av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")] * 3 + [None]:
            container.mux(stream.encode(frame))
    (home / "x.mp4").write_text(content)
    assert ClipReader().frames(str(home / "secret.avi")) == 3
    with pytest.raises(ImageDecodeError):
        ClipReader().frames(str(home / "x.mp4"))


# Links


def test_a_lock_is_not_taken_through_a_link(home, outside):
    (home / "run.lock").symlink_to(outside / "run.lock")
    with pytest.raises(ValueError, match="cannot be written to"), RunLock(home):
        pass


def test_samples_are_not_written_through_a_link(home, outside):
    def writer(name):
        return NpzWriter(home / name, total=4, shape=(2, 2), batch_size=2, settings={})

    def draw(numbers):
        return np.zeros((len(numbers), 2, 2, 3), np.uint8)

    (home / "a.npz.parts" / "process-0").mkdir(parents=True)
    (home / "a.npz.parts" / "process-0" / "images").symlink_to(outside / "notes.txt")
    with pytest.raises(OSError, match="is a link"):
        writer("a.npz").run(draw)
    (home / "b.npz.parts").mkdir()
    (home / "b.npz.parts" / "process-0").symlink_to(outside)
    with pytest.raises(OSError, match="is a link"):
        writer("b.npz").run(draw)
    (home / "c.npz.parts").symlink_to(outside)
    with pytest.raises(OSError, match="is a link"):
        writer("c.npz").run(draw)
    assert writer("d.npz").run(draw)


def test_only_what_a_run_had_begun_is_removed(home, outside):
    folder = home / "checkpoints"
    folder.mkdir()
    kept = ["download.part", "thesis.tex.part", "x.orbax-checkpoint-tmp-1", "2024.part"]
    for name in kept:
        (folder / name).write_text("mine")
    (folder / "linked.part").symlink_to(outside)
    gone = [f"3.pt.{'0123456789abcdef' * 2}.part", "4.orbax-checkpoint-tmp-5", "5.dropped.part"]
    (folder / gone[0]).write_text("half")
    (folder / gone[1]).mkdir()
    (folder / gone[2]).symlink_to(outside / "folder")
    remove_half_written(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*kept, "linked.part"])


def test_replacing_keeps_the_permissions_and_what_a_link_leads_to(home, outside):
    secret = home / "secret.json"
    secret.write_text("old")
    secret.chmod(0o600)
    with replacing(secret) as file:
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
        file.write(b"new")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    (home / "link").symlink_to(outside / "notes.txt")
    with replacing(home / "link") as file:
        file.write(b"new")
    assert not (home / "link").is_symlink()


# What is said


def is_plain(text):
    return all(c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


def pickle_names(home):
    with zipfile.ZipFile(home / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02c" + CLEAR.encode() + b"\nx\n.")
    torch_pickle.load(home / "x.pt")


def index_names(home):
    index = prepared(home)
    rewrite(index, location=f"/{CLEAR}")
    TarIndex(index)


def configuration_names(home):
    (home / "x.yaml").write_text(json.dumps({**TINY, CLEAR: 1, "name": [CLEAR]}))
    load_any_config(home / "x.yaml")


def image_names(home):
    decode_image(b"junk", name=CLEAR)


@pytest.mark.parametrize("attack", [pickle_names, index_names, configuration_names, image_names])
def test_names_from_files_are_escaped(home, attack, capsys):
    with pytest.raises(ValueError) as caught:
        attack(home)
    assert is_plain(str(caught.value))

    def run(_):
        print(CLEAR)
        attack(home)

    assert command.guarded(run, None) == command.UNUSABLE
    said = capsys.readouterr()
    assert is_plain(said.out)
    assert is_plain(said.err.rpartition("error: ")[2])


def test_a_refused_pickle_says_so(home):
    with pytest.raises(RefusedError, match=r"refused: it names \\x1b\[2J"):
        pickle_names(home)


def test_data_of_a_checkpoint_cannot_be_described_as_the_users(home):
    """What `preparation` keeps holds no text at all but the words of the schema."""
    from voken_common.config.preparation import preparation

    places = {"kind": "tar", "sets": ({"index": CLEAR, "location": CLEAR, "filter_keys": CLEAR},)}
    data = DataConfig.model_validate({"train": places, "image_size": 8}, strict=False)
    assert preparation(data)["train"] == {"kind": "tar"}
