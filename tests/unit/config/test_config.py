"""Configuration files: inheritance, overrides, round trips, and what every error says."""

import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from voken_common.config.loading import ConfigError, from_json, load_config, merge, to_yaml, validate, with_overrides
from voken_jax.parallel.sharding import check_batch, make_mesh

LFQ = {
    "name": "tiny",
    "model": {
        "network": "magvit2",
        "resolution": 32,
        "channels": 32,
        "channel_multipliers": [1, 2],
        "residual_blocks": 1,
        "z_channels": 8,
    },
    "quantizer": {"kind": "lfq", "codebook_size": 256, "code_dim": 8},
    "data": {"train": {"kind": "skimage", "region": "train"}, "image_size": 32},
    "training": {"batch_size": 8, "steps": 10},
}
IBQ = LFQ | {
    "model": LFQ["model"] | {"network": "vqgan", "attention_resolutions": [16]},
    "quantizer": {"kind": "ibq", "codebook_size": 100, "code_dim": 8},
}


def changed(base, **changes):
    """A copy with `section__key=value` changes."""
    mapping = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = mapping
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return mapping


def message(mapping):
    with pytest.raises(ConfigError) as caught:
        validate(mapping, origin="run.yaml")
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


def test_both_families_are_valid():
    assert validate(LFQ, "x").quantizer.kind == "lfq"
    assert validate(IBQ, "x").model.attention_resolutions == (16,)


def test_unknown_key_names_the_nearest():
    text = message(changed(LFQ, optimizer__learnin_rate=1e-4))
    assert text.startswith("run.yaml: 1 problem(s)")
    assert "unknown key optimizer.learnin_rate; did you mean optimizer.learning_rate?" in text
    assert "allowed here: learning_rate, betas," in text


def test_unknown_section_and_key_of_another_section():
    assert "unknown key optimiser; did you mean optimizer?" in message(changed(LFQ, optimiser={}))
    text = message(changed(LFQ, training__learning_rate=1e-4))
    assert "unknown key training.learning_rate; did you mean optimizer.learning_rate?" in text


def test_unknown_key_of_a_section_with_kinds():
    text = message(changed(LFQ, quantizer__temprature=0.1))
    assert "unknown key quantizer.temprature; did you mean quantizer.temperature?" in text
    text = message(changed(LFQ, data__train__regoin="train"))
    assert "unknown key data.train.regoin; did you mean data.train.region?" in text


def test_wrong_kind_lists_the_kinds():
    text = message(changed(LFQ, quantizer__kind="fsq"))
    assert "quantizer" in text
    assert all(kind in text for kind in ("fsq", "lfq", "ibq", "vq"))


def test_wrong_type_names_key_value_and_type():
    text = message(changed(LFQ, model__channels="wide", training__batch_size=8.5))
    assert "2 problem(s)" in text
    assert "model.channels = 'wide' (str): input should be a valid integer" in text
    assert "training.batch_size = 8.5 (float): input should be a valid integer" in text
    assert "data.flip = 'yes' (str): input should be a valid boolean" in message(changed(LFQ, data__flip="yes"))


def test_wrong_choice_lists_what_is_allowed():
    text = message(changed(LFQ, optimizer__schedule__kind="cosine"))
    assert "optimizer.schedule.kind = 'cosine'" in text
    assert "'constant', 'linear', 'cos'" in text


def test_missing_key():
    mapping = copy.deepcopy(LFQ)
    del mapping["training"]["batch_size"]
    assert "missing key training.batch_size: it has no default and must be set" in message(mapping)


@pytest.mark.parametrize(
    "base, changes, expected",
    [
        (LFQ, {"quantizer__codebook_size": 255}, "codebook_size 255 is not 2^code_dim with code_dim 8"),
        (LFQ, {"quantizer__codebook_size": 255}, "set quantizer.codebook_size to 256"),
        (LFQ, {"quantizer__token_bits": [3, 4]}, "token_bits (3, 4) must add up to code_dim 8"),
        (LFQ, {"model__z_channels": 6}, "model.z_channels 6 must equal quantizer.code_dim 8"),
        (LFQ, {"model__resolution": 33}, "resolution 33 is not divisible by the downsampling factor 2"),
        (LFQ, {"model__channels": 40}, "is not divisible by the 32 groups of group norm"),
        (
            LFQ,
            {"model__network": "vqgan"},
            "quantizer.kind lfq needs model.network magvit2 or magvit2_video, found vqgan",
        ),
        (LFQ, {"model__attention_resolutions": [16]}, "network magvit2 has no attention"),
        (LFQ, {"model__dropout": 0.1}, "network magvit2 has no dropout"),
        (IBQ, {"model__attention_resolutions": [8]}, "attention_resolutions [8] are never reached"),
        (IBQ, {"model__attention_resolutions": [8]}, "the levels are [32, 16]"),
        (
            LFQ,
            {"optimizer__gradient_accumulation": 3},
            "training.batch_size 8 is not divisible by optimizer.gradient_accumulation 3",
        ),
        (LFQ, {"training__epochs": 2}, "set exactly one of epochs and steps"),
        (LFQ, {"optimizer__schedule__drop_epochs": [2]}, "drop_epochs needs training.epochs"),
        (
            LFQ,
            {"optimizer__schedule": {"warmup_steps": 1, "warmup_epochs": 1.0}},
            "set warmup_steps or warmup_epochs, not both",
        ),
        (LFQ, {"mesh__data": 0}, "data is 0: expected a positive number of devices, or -1"),
        (LFQ, {"statistics_scope": "per_device", "mesh__fsdp": 2}, "set mesh.fsdp and mesh.model to 1, found 2 and 1"),
        (IBQ, {"quantizer__shard_codes": True, "mesh__model": 7}, "must be divisible by it"),
        (
            LFQ,
            {"data": {"train": {"kind": "video_folder", "path": "videos"}, "image_size": 32}},
            "data gives videos, and model.network magvit2 is one for images",
        ),
        (LFQ, {"discriminator": {"kind": "blur", "hidden_channels": 48}}, "hidden_channels 48 is not divisible"),
    ],
)
def test_impossible_combinations(base, changes, expected):
    assert expected in message(changed(base, **changes))


def test_batch_must_divide_over_devices():
    config = validate(changed(LFQ, training__batch_size=12), "x")
    with pytest.raises(ValueError, match=r"training.batch_size 12 is not divisible by 8 \(devices along data and fsdp"):
        check_batch(config, make_mesh(config.mesh))
    config = validate(changed(LFQ, training__batch_size=24, optimizer__gradient_accumulation=2), "x")
    with pytest.raises(
        ValueError, match=r"not divisible by 16 .*optimizer.gradient_accumulation: 2\); the nearest that is: 32"
    ):
        check_batch(config, make_mesh(config.mesh))
    config = validate(changed(LFQ, validation__batch_size=30), "x")
    with pytest.raises(ValueError, match="validation.batch_size 30 is not divisible by 8"):
        check_batch(config, make_mesh(config.mesh))
    check_batch(
        validate(changed(LFQ, training__batch_size=16, optimizer__gradient_accumulation=2), "x"), make_mesh(config.mesh)
    )


def test_mesh_must_use_every_device():
    config = validate(changed(LFQ, mesh__fsdp=3), "x")
    with pytest.raises(ValueError, match=r"mesh.fsdp 3 x mesh.model 1 does not use the 8 device\(s\) found exactly"):
        make_mesh(config.mesh)


def test_inheritance(write):
    write("base.yaml", changed(LFQ, optimizer__betas=[0.5, 0.9], data__train__crops=4))
    child = {"base": "../base.yaml", "name": "child", "model": {"channels": 64}, "optimizer": {"learning_rate": 2e-4}}
    config = load_config(write("family/child.yaml", child))
    assert (config.name, config.model.channels, config.model.residual_blocks) == ("child", 64, 1)
    assert (config.optimizer.learning_rate, config.optimizer.betas) == (2e-4, (0.5, 0.9))


def test_another_kind_replaces_the_section(write):
    write("base.yaml", changed(LFQ, data__train__crops=4, discriminator={"kind": "patchgan", "layers": 2}))
    child = {
        "base": "base.yaml",
        "data": {"train": {"kind": "image_folder", "path": "photos"}},
        "discriminator": {"kind": "blur", "stages": 3},
    }
    config = load_config(write("child.yaml", child))
    assert config.data.train.path == "photos"
    assert config.discriminator.stages == 3


def test_base_errors(write):
    write("a.yaml", {"base": "b.yaml"})
    with pytest.raises(ConfigError, match=r"base: runs in a circle: .*a.yaml -> .*b.yaml -> .*a.yaml"):
        load_config(write("b.yaml", {"base": "a.yaml"}).with_name("a.yaml"))
    with pytest.raises(ConfigError, match=r"no configuration file .*c.yaml"):
        load_config(write("d.yaml", {"base": "c.yaml"}))
    with pytest.raises(ConfigError, match=r"base is \['a.yaml'\], expected the path of one YAML file"):
        load_config(write("e.yaml", {"base": ["a.yaml"]}))


def test_missing_file_names_its_neighbours(write):
    path = write("imagenet_256.yaml", LFQ)
    with pytest.raises(ConfigError, match=r"no configuration file .*imagnet_256.yaml; nearest .*: imagenet_256.yaml"):
        load_config(path.with_name("imagnet_256.yaml"))


def test_files_that_are_no_mapping_of_sections(write):
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(write("a.yaml", "name: [1, 2"))
    with pytest.raises(ConfigError, match="holds list, expected a mapping of sections"):
        load_config(write("b.yaml", "- 1\n- 2\n"))
    with pytest.raises(ConfigError, match=r"duplicate key 'name'[\s\S]*line 2"):
        load_config(write("c.yaml", "name: a\nname: b\n"))


@pytest.mark.parametrize(
    "text, value", [("1e-4", 1e-4), ("2E-5", 2e-5), ("1.5e-3", 1.5e-3), (".5e-3", 5e-4), ("1", 1.0)]
)
def test_floats_as_people_write_them(write, text, value):
    path = write("a.yaml", yaml.safe_dump(LFQ) + f"optimizer: {{learning_rate: {text}}}\n")
    assert load_config(path).optimizer.learning_rate == value
    assert load_config(write("b.yaml", LFQ), [f"optimizer.learning_rate={text}"]).optimizer.learning_rate == value


def test_values_that_no_configuration_holds(write):
    with pytest.raises(ConfigError, match=r"optimizer.betas.1 = nan \(float\): expected a finite number"):
        load_config(write("a.yaml", yaml.safe_dump(LFQ) + "optimizer: {betas: [0.5, .nan]}\n"))
    with pytest.raises(ConfigError, match=r"name = datetime.date\(2024, 5, 1\) \(date\): .* needs quotes"):
        load_config(write("b.yaml", LFQ), ["name=2024-05-01"])
    with pytest.raises(ConfigError, match="key 3 in model is not a string"):
        load_config(write("c.yaml", LFQ), ["model={3: 4}"])


def test_overrides(write):
    path = write("a.yaml", LFQ)
    overrides = ["model.channel_multipliers=[1, 2, 4]", "data.flip=true", "optimizer.gradient_clip=null", "name=b"]
    config = load_config(path, overrides)
    assert config.model.channel_multipliers == (1, 2, 4)
    assert config.data.flip is True
    assert config.name == "b"
    assert with_overrides(config, ["name=c"]).name == "c"


@pytest.mark.parametrize(
    "override, expected",
    [
        ("optimizer.learning_rate", "is not of the form path.to.key=value"),
        ("optimizer..learning_rate=1", "is not of the form path.to.key=value"),
        ("optimizer.lr=1", "unknown key optimizer.lr; "),
        ("optimzer.learning_rate=1", "unknown key optimzer; did you mean optimizer?"),
        ("training.steps.more=1", "training.steps is a value, not a section"),
        ("training.steps=many", "training.steps = 'many' (str): input should be a valid integer"),
        ("training.steps=[1", "the value is not valid YAML"),
        ("quantizer.beta=1", "unknown key quantizer.beta"),
    ],
)
def test_override_errors(write, override, expected):
    with pytest.raises(ConfigError) as caught:
        load_config(write("a.yaml", LFQ), [override])
    assert expected in str(caught.value)


def test_override_of_a_kind_then_of_its_keys(write):
    path = write("a.yaml", LFQ)
    config = load_config(path, ["discriminator.kind=blur", "discriminator.stages=2"])
    assert config.discriminator.stages == 2


@pytest.mark.parametrize(
    "mapping", [LFQ, IBQ, changed(LFQ, discriminator={"kind": "blur"}, optimizer__gradient_clip=1.0)]
)
def test_round_trips(write, mapping):
    config = validate(mapping, "x")
    assert load_config(write("resolved.yaml", to_yaml(config))) == config
    assert from_json(config.model_dump_json(), "checkpoint") == config


@given(st.floats(min_value=1e-30, max_value=1e30), st.integers(1, 10**9))
def test_numbers_survive_the_round_trip(rate, steps):
    config = validate(changed(LFQ, optimizer__learning_rate=rate, training__steps=steps), "x")
    again = validate(yaml.safe_load(to_yaml(config)), "y")
    assert again == config


def test_configs_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        validate(LFQ, "x").training.steps = 3


def test_merge_leaves_its_arguments_alone():
    base, top = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(base, top) == {"a": {"b": 1, "c": 2}}
    assert (base, top) == ({"a": {"b": 1}}, {"a": {"c": 2}})
