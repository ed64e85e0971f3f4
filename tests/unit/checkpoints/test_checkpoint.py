"""Checkpoints on disk: which steps are kept, which is found, and what is said about damaged or missing ones."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.support.tiny import tiny_config
from voken_common.config.loading import with_overrides
from voken_common.data.pipeline import build_train_iterator
from voken_common.errors import CheckpointError, DamagedError
from voken_jax.checkpoints.checksums import step_problems
from voken_jax.checkpoints.orbax import Checkpoints, find_step, load_generator, read_meta
from voken_jax.conversion.orbax_step import read_step
from voken_jax.parallel.sharding import make_mesh
from voken_jax.tokenizer.losses import LecamAverages
from voken_jax.tokenizer.state import TrainState

PSNR = {1: 30.0, 2: 10.0, 3: None, 4: 20.0}
L1 = {1: 0.1, 2: 0.5, 3: None, 4: 0.2}


def state_of(step):
    """A state whose every number follows from its step."""
    weights = {"conv.kernel": jnp.full((8, 2), step, jnp.float32), "conv.bias": jnp.arange(3.0) + step}
    ema = jax.tree.map(lambda w: w - 0.5, weights)
    moments = ({"mu": weights}, jnp.asarray(step))
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        rng=jnp.arange(4, dtype=jnp.uint32),
        generator=weights,
        discriminator=weights,
        buffers=weights,
        generator_optimizer=moments,
        discriminator_optimizer=moments,
        generator_ema=ema,
        discriminator_ema=ema,
        lecam=LecamAverages(jnp.zeros(1), jnp.ones(1)),
        failure=jnp.zeros((), jnp.int32),
    )


def open_iterator(config):
    return build_train_iterator(config.data, batch_size_per_process=8, seed=config.seed)


def save_all(workdir, config, scores=PSNR, metric="psnr"):
    """Steps 1 to 4, one of them not validated, as a run saves them; the batches' position is 8 per step."""
    checkpoints, iterator = Checkpoints(workdir, config.checkpoint), open_iterator(config)
    for step, score in scores.items():
        next(iterator)
        checkpoints.save(state_of(step), config, iterator, {} if score is None else {metric: score, "other": 1.0})
    iterator.close()
    checkpoints.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(work directory, configuration) of a run that kept its last 2 steps and its best."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(folder)
    save_all(folder, config)
    return folder, config


def steps_in(folder):
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("settings", "metric", "scores", "kept"),
    [
        (["keep_last=1", "keep_best=1"], "psnr", PSNR, ["1", "4"]),
        (["keep_last=1", "keep_best=2"], "psnr", PSNR, ["1", "4"]),
        (["keep_last=2", "keep_best=0"], "psnr", PSNR, ["3", "4"]),
        (["keep_last=1", "keep_best=2", "best_metric=l1"], "l1", L1, ["1", "4"]),
        (["keep_last=1", "keep_best=1", "best_metric=lpips"], "psnr", PSNR, ["4"]),
    ],
)
def test_old_steps_are_deleted(tmp_path, settings, metric, scores, kept):
    config = with_overrides(tiny_config(tmp_path), [f"checkpoint.{setting}" for setting in settings])
    save_all(tmp_path, config, scores, metric)
    assert steps_in(tmp_path) == kept


def test_the_last_two_and_the_best_stay(run):
    assert steps_in(run[0]) == ["1", "3", "4"]


def test_the_best_stays_when_a_run_continues(tmp_path):
    config = with_overrides(tiny_config(tmp_path), ["checkpoint.keep_last=1", "checkpoint.keep_best=1"])
    for step, score in PSNR.items():
        save_all(tmp_path, config, {step: score})
    assert steps_in(tmp_path) == ["1", "4"]


def test_latest_best_and_numbered_steps_are_found(run):
    folder, _ = run
    assert find_step(folder).name == "4"
    assert find_step(folder / "checkpoints").name == "4"
    assert find_step(str(folder), "best").name == "1"
    assert find_step(folder, 3) == folder / "checkpoints" / "3"
    assert find_step(folder / "checkpoints" / "3") == folder / "checkpoints" / "3"
    with pytest.raises(CheckpointError, match=r"step 2 is not in .*: the steps there are \[1, 3, 4\]"):
        find_step(folder, 2)


def test_the_best_by_a_metric_that_should_be_small(tmp_path):
    config = with_overrides(tiny_config(tmp_path), ["checkpoint.keep_last=4", "checkpoint.best_metric=l1"])
    save_all(tmp_path, config, L1, "l1")
    assert find_step(tmp_path, "best").name == "1"


def test_missing_checkpoints_say_what_is_expected(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"found: no such folder.*checkpoints/<step>/meta as"):
        find_step(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"found: an empty folder"):
        find_step(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"found: notes\.txt"):
        find_step(tmp_path)
    only = shutil.copytree(run[0] / "checkpoints" / "3", tmp_path / "checkpoints" / "3")
    with pytest.raises(CheckpointError, match=r"no step of \[3\] was validated, so none is the best by psnr"):
        find_step(tmp_path, "best")
    assert find_step(tmp_path) == only


def test_meta_holds_the_whole_configuration(run):
    folder, config = run
    meta = read_meta(find_step(folder))
    assert meta.config == config
    assert (meta.step, meta.metrics) == (4, {"psnr": 20.0, "other": 1.0})


def test_damaged_meta_is_told(run, tmp_path):
    step = shutil.copytree(run[0] / "checkpoints" / "4", tmp_path / "4")
    file = step / "meta" / "metadata"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps(meta | {"layout": 99}))
    with pytest.raises(CheckpointError, match="has layout 99, this version reads layout 1"):
        read_meta(step)
    file.write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read .* use another one"):
        read_meta(step)


@pytest.mark.parametrize(
    "change",
    [
        {"progress": {"averages": {}}},
        {"progress": {"averages": {"loss": [1.0, 2]}, "skipped": 0}},
        {"progress": [1]},
        {"metrics": {"psnr": "high"}},
        {"metrics": [1]},
        {"step": None},
        {"config": [1]},
        {"config": {"kind": "tokenizer", "nam": "tiny"}},
        [],
    ],
)
def test_a_step_that_says_nonsense_of_itself_is_passed_over(run, tmp_path, change, caplog):
    shutil.copytree(run[0] / "checkpoints", tmp_path / "checkpoints")
    file = tmp_path / "checkpoints" / "1" / "meta" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | change if change else change))
    with pytest.raises(ValueError, match=str(file)):
        read_meta(tmp_path / "checkpoints" / "1")
    assert find_step(tmp_path, "best", verify=False).name == "4"
    assert "step 1 is passed over: " in caplog.text


@pytest.mark.parametrize("devices", [1, 8])
def test_restores_state_and_data_onto_other_devices(run, devices):
    folder, config = run
    mesh = make_mesh(config.mesh, jax.devices()[:devices])

    def where(leaf):
        spec = P("data") if leaf.shape[:1] == (8,) else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    abstract, iterator = jax.tree.map(where, state_of(0)), open_iterator(config)
    checkpoints = Checkpoints(folder, config.checkpoint)
    state = checkpoints.restore(abstract, iterator)
    checkpoints.close()
    iterator.close()
    assert iterator.position == 4 * 8
    assert state.generator["conv.kernel"].sharding == abstract.generator["conv.kernel"].sharding
    jax.tree.map(np.testing.assert_array_equal, state, state_of(4))


def test_only_the_asked_weights_are_read(run):
    step = find_step(run[0])
    abstract = {n: jax.ShapeDtypeStruct(w.shape, w.dtype) for n, w in state_of(0).generator.items()}
    for weights, value in (("ema", 3.5), ("raw", 4.0)):
        loaded = load_generator(step, abstract, weights)
        np.testing.assert_array_equal(loaded["conv.kernel"], np.full((8, 2), value))
        assert len(loaded["conv.kernel"].devices()) == 1
    with pytest.raises(ValueError, match=r"conv\.extra"):
        load_generator(step, abstract | {"conv.extra": abstract["conv.bias"]})


def test_what_is_left_out_of_a_damaged_step_is_read_or_an_error(run, tmp_path):
    """As with --no-verify. Orbax raises bare Exception, KeyError and AttributeError for damage."""
    step = shutil.copytree(run[0] / "checkpoints" / "4", tmp_path / "4")
    abstract = {n: jax.ShapeDtypeStruct(w.shape, w.dtype) for n, w in state_of(0).generator.items()}
    errors = []
    for file in sorted(path for path in (step / "generator_ema").rglob("*") if path.is_file()):
        whole = file.read_bytes()
        for content in (whole[: len(whole) // 2], b"{}", b"[]", whole[: len(whole) // 4] + bytes([whole[-1] ^ 1])):
            file.write_bytes(content)
            for read in (lambda: load_generator(step, abstract), lambda: read_step(step, "ema")):
                try:
                    read()
                except CheckpointError as error:
                    errors.append(error)
        file.write_bytes(whole)
    assert all(f"{step / 'generator_ema'} cannot be read (" in str(error) for error in errors)
    assert not all(isinstance(error.__cause__, ValueError | OSError) for error in errors), (
        "some that commands do not expect"
    )


def test_a_training_state_that_lacks_a_part_is_told(run, tmp_path):
    step = shutil.copytree(run[0] / "checkpoints" / "4", tmp_path / "4")
    file = step / "rest" / "_METADATA"
    content = json.loads(file.read_text())
    del content["tree_metadata"]["('failure',)"]
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"4/rest cannot be read \(KeyError: 'failure'\); it is damaged"):
        read_step(step)


def test_training_does_not_go_on_from_a_damaged_step_without_checksums(tmp_path):
    config = with_overrides(tiny_config(tmp_path), ["checkpoint.checksums=false"])
    save_all(tmp_path, config)
    place = tmp_path / "checkpoints" / "4" / "rest" / "_METADATA"
    place.write_bytes(b"{}")
    checkpoints, iterator = Checkpoints(tmp_path, config.checkpoint), open_iterator(config)
    with pytest.raises(CheckpointError, match=r"checkpoints/4.* cannot be read \("):
        checkpoints.restore(state_of(0), iterator)
    iterator.close()
    checkpoints.close()


def test_steps_carry_checksums_of_files_and_arrays(run):
    step = find_step(run[0])
    content = json.loads((step / "checksums.json").read_text())
    weights = {f"{item}/{name}" for item in ("generator", "generator_ema") for name in state_of(0).generator}
    assert weights <= set(content["arrays"])
    assert {"meta/metadata", "data/process_0-of-1.json", "rest/_METADATA"} <= set(content["files"])
    assert step_problems(step) == []


def test_checksums_can_be_turned_off(run, tmp_path):
    config = with_overrides(run[1], ["checkpoint.checksums=false"])
    save_all(tmp_path, config)
    assert not list(tmp_path.rglob("checksums.json"))
    assert find_step(tmp_path).name == "4"
    damaged = shutil.copytree(run[0] / "checkpoints" / "4", tmp_path / "4")
    (damaged / "checksums.json").unlink()
    with pytest.raises(DamagedError, match=r"4 is damaged: checksums.json is not there"):
        find_step(damaged)


def test_a_step_that_cannot_be_written_leaves_those_before(run, tmp_path, monkeypatch):
    shutil.copytree(run[0] / "checkpoints", tmp_path / "checkpoints")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("voken_jax.checkpoints.checksums.seal", full)
    checkpoints, iterator = Checkpoints(tmp_path, run[1].checkpoint), open_iterator(run[1])
    with pytest.raises(CheckpointError, match=r"step 5 could not be written .*No space left.*intact: \[1, 3, 4\]"):
        checkpoints.save(state_of(5), run[1], iterator, {})
    iterator.close()
    assert steps_in(tmp_path) == ["1", "3", "4"]


def test_damaged_steps_move_out_of_the_way(run, tmp_path, caplog):
    shutil.copytree(run[0] / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "4" / "rest" / "_METADATA").unlink()
    (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir()
    checkpoints = Checkpoints(tmp_path, run[1].checkpoint)
    assert checkpoints.latest_step() == 3
    assert steps_in(tmp_path) == ["1", "3", "4", "5.orbax-checkpoint-tmp"], "looking changes nothing"
    assert checkpoints.recover() == 3
    assert steps_in(tmp_path) == ["1", "3"]
    assert (tmp_path / "damaged_checkpoints" / "4").is_dir()
    iterator = open_iterator(run[1])
    checkpoints.save(state_of(4), run[1], iterator, {})
    iterator.close()
    assert checkpoints.latest_step() == 4
    checkpoints.close()
    assert "step 4 is damaged: rest/_METADATA is not there (No such file or directory). Step 3" in caplog.text
