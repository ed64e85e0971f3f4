"""Where the tokenizer of a generator's checkpoint is looked for."""

import pytest

from voken_common.errors import CheckpointError
from voken_common.first_stage import find_tokenizer


@pytest.mark.parametrize(
    "checkpoint", ["gen", "gen/checkpoints", "gen/checkpoints/7", "gen/checkpoints/7.pt", "gen.pt"]
)
def test_beside_the_generator_first(tmp_path, monkeypatch, checkpoint):
    (tmp_path / "gen" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "elsewhere" / "tok").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert str(find_tokenizer("elsewhere/tok", checkpoint)) == "elsewhere/tok"
    (tmp_path / "tok").mkdir()
    assert find_tokenizer("elsewhere/tok", checkpoint).resolve() == tmp_path / "tok"
    assert find_tokenizer("elsewhere/tok", tmp_path / checkpoint).resolve() == tmp_path / "tok"


def test_nowhere(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"whose tokenizer is lost/tok: found nothing at .*/tok nor at lost/tok; put"
    ):
        find_tokenizer("lost/tok", tmp_path / "gen")
