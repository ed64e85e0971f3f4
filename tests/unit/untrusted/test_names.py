"""A path made of any string lies below its folder, and no two keys share one."""

import os
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from voken_common.untrusted.names import DEEPEST, LONGEST_PART, LONGEST_PATH, SafeNames, safe_path

HOSTILE = [
    "/etc/passwd",
    "//etc/passwd",
    "../../x",
    "a/../../../x",
    "..",
    ".",
    "",
    "/",
    "C:\\Windows\\x",
    "C:x",
    "\\\\server\\share\\x",
    "a\0b",
    "a\x1b[2Jb",
    "a\nb",
    "con",
    "NUL.png",
    "Com1.tar.gz",
    "aux .txt",
    "x" * 5000,
    "é" * 200,
    "a/" * 3000,
    ".profile",
    ".ssh/authorized_keys",
    "a ",
    "a.",
    "\u202egnp.exe",
    "\udcff\udc80",
    "\ud800",
    "...",
    "a\u2028b",
]
PARTS = st.sampled_from([*HOSTILE, "a", "A", "b.png", "é", "e\u0301"])
KEYS = st.one_of(
    st.text(st.characters(codec=None), max_size=300),
    st.binary(max_size=300).map(os.fsdecode),
    st.lists(PARTS, max_size=6).map("/".join),
)


def check(path: PurePosixPath) -> None:
    text = str(path)
    assert not path.is_absolute()
    assert not PureWindowsPath(text).drive
    assert not PureWindowsPath(text).root
    assert 1 <= len(path.parts) <= DEEPEST
    assert len(text.encode()) <= LONGEST_PATH
    for part in path.parts:
        assert part == part.strip(" ") or part.startswith(" ")
        assert part not in ("", ".", "..")
        assert part[0] != "."
        assert part[-1] not in " ."
        assert len(part.encode("utf-8")) <= LONGEST_PART
        assert not any(character in part for character in '\\:*?"<>|/\0')
        assert not any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in part)
        assert part.split(".")[0].strip().lower() not in ("con", "prn", "aux", "nul", "com1", "lpt9")


@given(KEYS, st.sampled_from(["", ".png", ".crop3.png", ".reconstruction.png"]))
@example("//x", ".png")
@example("..", ".png")
def test_any_string_becomes_a_path_below_the_folder(key, suffix):
    path = safe_path(key, suffix)
    check(path)
    assert path.name.endswith(suffix)
    assert os.path.normpath(f"/folder/{path}") == f"/folder/{path}"


@pytest.mark.parametrize("key", HOSTILE)
def test_a_hostile_name_can_be_written(tmp_path, key):
    path = tmp_path / "inside" / safe_path(key, ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    assert path.resolve().is_relative_to((tmp_path / "inside").resolve())
    assert list(tmp_path.iterdir()) == [tmp_path / "inside"]


@pytest.mark.parametrize("key", ["a/b", "n01440764/n01440764_10026", "crop 1/ä", "火/a-b_c.d", "-x", "a%b", "x..y"])
def test_ordinary_keys_stay(key):
    assert str(safe_path(key, ".png")) == f"{key}.png"


def clash_key(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", str(path)).lower())


@given(st.lists(KEYS, max_size=20))
@example(["a", "A", "a.png/b", "é", "e\u0301", "ß", "SS"])
@example(["a.png/b", "a", "a"])
def test_no_two_keys_share_a_path(keys):
    names = SafeNames(reserved=["side_by_side.png"])
    paths = [names.path(key, ".png", distinct=f"sample{number}") for number, key in enumerate(keys)]
    for path in paths:
        check(path)
    files = {clash_key(path) for path in paths}
    folders = {clash_key(parent) for path in paths for parent in path.parents}
    assert len(files) == len(paths)
    assert not files & folders
    assert "side_by_side.png" not in files


def test_the_path_of_a_taken_name_says_which_sample_it_is():
    names = SafeNames()
    assert [str(names.path(key, ".png", distinct=f"sample{n}")) for n, key in enumerate(["a/b", "a/b", "A/B"])] == [
        "a/b.png",
        "a/b.sample1.png",
        "A/B.sample2.png",
    ]
