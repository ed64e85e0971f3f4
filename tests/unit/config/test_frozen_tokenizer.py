"""Where the tokenizer of a generator's checkpoint is looked for."""

from pathlib import Path

import pytest

from voken_common.checkpoints.frozen_tokenizer import find_tokenizer, tokenizer_of_run
from voken_common.config.loading import load_any_config, to_yaml
from voken_common.errors import CheckpointError
from voken_common.published.models import config_file, find

CONFIGS = Path(__file__).parents[3] / "configs"
GENERATOR = config_file(find("ibq_generator_B"))


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


def test_a_generator_is_not_its_own_tokenizer(tmp_path):
    (tmp_path / "gen" / "run" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "tok" / "run").mkdir(parents=True)
    reference = str(tmp_path / "tok" / "run")
    for checkpoint in ("run", "run/checkpoints/7"):
        assert str(find_tokenizer(reference, tmp_path / "gen" / checkpoint)) == reference
    generator = load_any_config(GENERATOR, ["data.train=none"])
    (tmp_path / "gen" / "run" / "config.yaml").write_text(to_yaml(generator))
    assert str(find_tokenizer(reference, tmp_path / "gen" / "other")) == reference, "nor another generator's"


def test_of_a_run(tmp_path):
    (tmp_path / "tok").mkdir()
    overrides = ["data.train=none", "tokenizer=elsewhere/tok"]
    generator = load_any_config(GENERATOR, overrides)
    assert tokenizer_of_run(generator, tmp_path / "new") == (tmp_path / "tok").resolve()
    assert tokenizer_of_run(generator.model_copy(update={"tokenizer": None}), tmp_path / "new") is None
    assert tokenizer_of_run(load_any_config(CONFIGS / "quickstart_lfq.yaml"), tmp_path / "new") is None
    with pytest.raises(CheckpointError, match=r"nor at elsewhere/tok; .* or name another place \(--tokenizer, or `tok"):
        tokenizer_of_run(generator, tmp_path / "other" / "new")
    (tmp_path / "named").mkdir()
    named = generator.model_copy(update={"tokenizer": str(tmp_path / "named")})
    (tmp_path / "runs" / "named").mkdir(parents=True)
    assert tokenizer_of_run(named, tmp_path / "runs" / "new") == tmp_path / "named", "the configuration says it now"
