"""The reference of settings, and the origins of values."""

from pathlib import Path

import pytest
import yaml

import voken
from voken_common.config import reference
from voken_common.config.loading import load_any_config, to_yaml
from voken_common.config.origins import annotated_yaml
from voken_common.errors import UserError

ROOT = Path(__file__).resolve().parents[3]


def every_setting(kinds=tuple(reference.ROOTS)):
    return [s for kind in kinds for section in reference.sections(kind) for s in section.settings]


def test_every_key_of_a_resolved_configuration_is_in_the_reference():
    def keys(value, path=()):
        for name, below in value.items():
            if isinstance(below, dict):
                yield from keys(below, (*path, name))
            else:
                yield ".".join((*path, name))

    known = {setting.key for setting in every_setting()}
    sections = {section.key for kind in reference.ROOTS for section in reference.sections(kind)}
    for file in ("configs/quickstart_lfq.yaml", "configs/ibq/imagenet_16384.yaml", "configs/ibq/generator_B.yaml"):
        found = set(keys(yaml.safe_load(to_yaml(load_any_config(file)))))
        # A section that may be absent is null.
        assert found - known <= sections, found - known - sections


def test_types_and_defaults_read_as_words():
    found = {(s.key, s.variant): s for s in every_setting(["tokenizer"])}
    temperature = found["quantizer.temperature", "lfq"]
    assert (temperature.type, temperature.default) == ("number >= 1e-06", "0.01")
    assert found["name", ""].default is None
    assert found["statistics_scope", ""].type == '"global" or "per_device"'
    assert found["adversarial.generator_weight", ""].type == "number >= 0 or null"


def test_a_key_is_found_by_its_last_part_and_a_wrong_one_suggests_the_nearest():
    assert {s.variant for _, s in reference.find_settings("beta")} == {"ibq", "vq"}
    with pytest.raises(UserError, match="did you mean .*commitment_weight"):
        reference.find_settings("comitment_weigth")


def test_origins_name_file_override_and_default(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nname: mine\noptimizer: {learning_rate: 2e-4}\n")
    base = yaml.safe_load(to_yaml(load_any_config("configs/quickstart_lfq.yaml")))
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({k: base[k] for k in ("name", "model", "data", "training")}))
    with (tmp_path / "base.yaml").open("a") as file:
        file.write("quantizer: {kind: lfq, codebook_size: 1024, code_dim: 10}\n")
    text = annotated_yaml(tmp_path / "mine.yaml", ["seed=7"])
    origins = {line.split(":")[0].strip(): line.rpartition("# ")[2] for line in text.splitlines() if "#" in line}
    assert origins["learning_rate"] == "mine.yaml"
    assert origins["residual_blocks"] == "base.yaml"
    assert origins["seed"] == "--set"
    assert origins["ema_decay"] == "default"
    config = load_any_config(tmp_path / "mine.yaml", ["seed=7"])
    assert yaml.safe_load(text) == yaml.safe_load(to_yaml(config))


def test_every_key_says_what_it_means():
    silent = {(setting.key, setting.variant) for setting in every_setting() if not setting.meaning}
    assert not silent, f"describe these in the schema, in a docstring below the field: {sorted(silent)}"


def test_the_page_is_what_the_schemas_say():
    page = (ROOT / "docs" / "configuration.md").read_text()
    written = page.split("<!-- reference -->")[1].split("<!-- /reference -->")[0]
    assert written.strip() == reference.markdown().strip(), "run scripts/write_reference.py"


def test_the_worked_example_of_the_page_loads(tmp_path):
    page = (ROOT / "docs" / "configuration.md").read_text()
    example = page.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "my_photos.yaml").write_text(example)
    config = load_any_config(tmp_path / "my_photos.yaml")
    assert (config.quantizer.codebook_size, config.model.downsampling) == (4096, 8)


def test_the_command(capsys):
    assert voken.main(["config", "show", "configs/quickstart_lfq.yaml"]) == 0
    assert "codebook_size: 1024" in capsys.readouterr().out
    assert voken.main(["config", "explain", "lecam_weight"]) == 0
    assert "adversarial.lecam_weight" in capsys.readouterr().out
    assert voken.main(["config", "explain"]) == 2
    assert voken.main(["config", "list", "--kind", "generator"]) == 0
    assert "model.layers" in capsys.readouterr().out
