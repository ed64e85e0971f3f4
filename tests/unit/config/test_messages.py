"""What a user reads who made a mistake: the key that was meant, the value that fits, the cause behind a long error."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import TINY
from voken_common.causes import cause_of, shortened
from voken_common.checkpoints.steps import describe_missing, failed_write, require_framework
from voken_common.commands.main import extra_of, guarded
from voken_common.config.differences import changed_keys, differences
from voken_common.config.loading import ConfigError, find_config, load_any_config, validate, with_overrides
from voken_common.errors import WorkdirError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("optimizer.lr=1", "optimizer.learning_rate"),
        ("optimizer.wd=1", "optimizer.weight_decay"),
        ("optimizer.grad_clip=1", "optimizer.gradient_clip"),
        ("optimizer.learning_rat=1", "optimizer.learning_rate"),
        ("quantizer.n_embed=1", "quantizer.codebook_size"),
        ("quantizer.embed_dim=1", "quantizer.code_dim"),
        ("data.num_workers=1", "data.workers"),
        ("data.resolution=1", "data.image_size"),
        ("model.ch_mult=1", "model.channel_multipliers"),
        ("training.max_steps=1", "training.steps"),
        ("training.bs=1", "training.batch_size"),
    ],
)
def test_the_key_that_was_meant(override, meant):
    with pytest.raises(ConfigError, match=rf"unknown key \S+; did you mean {meant}\?"):
        with_overrides(validate(TINY, "tiny"), [override])


def test_a_code_size_that_does_not_fit_says_what_to_set():
    wrong = TINY | {"quantizer": TINY["quantizer"] | {"codebook_size": 512}}
    with pytest.raises(ConfigError, match=r"set quantizer.codebook_size to 256, or code_dim to 9"):
        validate(wrong, "tiny")
    wrong = TINY | {"model": TINY["model"] | {"z_channels": 9}}
    with pytest.raises(ConfigError, match=r"set model.z_channels to 8"):
        validate(wrong, "tiny")


def test_a_configuration_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_any_config("quickstart_lfq") == load_any_config(ROOT / "configs" / "quickstart_lfq.yaml")
    assert find_config(Path("quickstart_lfq.yaml")).is_file()
    with pytest.raises(ConfigError, match="no configuration file"):
        load_any_config("quickstart_lfg_of_nobody")
    (tmp_path / "quickstart_lfq").write_text("name: mine")
    assert find_config(Path("quickstart_lfq")) == Path("quickstart_lfq"), "what lies here comes first"


def test_mistakes_are_told_before_a_framework_is_imported(tmp_path):
    code = (
        "import sys; from voken_common.commands.main import main; "
        f"words = ['--config', 'quickstart_lfq', '--set', 'optimizer.lr=1', '--workdir', {str(tmp_path)!r}]; "
        "status = main(['train', *words]); "
        "print(status, sorted({'jax', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []"
    assert "did you mean optimizer.learning_rate?" in done.stderr
    assert "Unable to initialize" not in done.stderr


@pytest.mark.parametrize(("module", "extra"), [("jax", "jax"), ("clu.metrics", "jax"), ("av", "data"), ("x", None)])
def test_a_missing_module_names_its_extra(capsys, module, extra):
    assert extra_of(module) == extra

    def run(_):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    if extra is None:
        with pytest.raises(ModuleNotFoundError):
            guarded(run, None)
    else:
        assert guarded(run, None) == 2
        assert f"error: this needs {module}, which is not installed: pip install 'voken[{extra}]'" in (
            capsys.readouterr().err
        )


LONG = "INTERNAL: " + "x" * 900


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EFBIG, "File too large"),
        RuntimeError(f"{LONG} os_error_code='27' {LONG}"),
        RuntimeError(f"{LONG} [os_error_code=27] {LONG}"),
        RuntimeError(f"{LONG} File too large {LONG}"),
    ],
)
def test_a_shortened_error_keeps_its_cause(tmp_path, error):
    assert cause_of(error) == "File too large"
    wrapped = RuntimeError(LONG * 3)
    wrapped.__cause__ = error
    for found in (error, wrapped):
        assert "File too large" in shortened(found)
        assert len(shortened(found)) < 450
        assert "File too large" in str(failed_write(3, tmp_path, found, [1]))
    assert shortened(RuntimeError("short\n  and plain")) == "short and plain"
    assert cause_of(RuntimeError(LONG)) is None


@pytest.mark.parametrize(("framework", "other", "step"), [("jax", "PyTorch", "4.pt"), ("torch", "JAX", "4")])
def test_a_work_directory_belongs_to_one_framework(tmp_path, framework, other, step):
    require_framework(tmp_path / "new", framework)
    (tmp_path / "checkpoints" / step).mkdir(parents=True)
    target = "torch" if framework == "torch" else "orbax"
    with pytest.raises(WorkdirError, match=rf"holds a run of {other}.*voken convert {tmp_path} \S+ --to {target}"):
        require_framework(tmp_path, framework)
    require_framework(tmp_path, "torch" if framework == "jax" else "jax")
    text = describe_missing(tmp_path, f"python -m voken_{framework}.train", "<step>")
    assert f"holds a run of {other}" in text
    assert "voken convert" in text


def test_differences_are_named_by_key():
    before, now = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": 3}
    assert changed_keys(before, now) == {"a.c": ([1], [2]), "d": (2, "nothing"), "e": ("nothing", 3)}
    assert differences(before, now)[0] == "a.c: found [1], this run has [2]"
    assert os.strerror(errno.EFBIG) == "File too large"
