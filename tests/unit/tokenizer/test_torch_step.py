"""The PyTorch step and state: accumulation, failure, averages, clipping, formats, dropout, round trips."""

import copy

import numpy as np
import pytest
import torch

from voken_common.checkpoints.weight_names import NameMismatch
from voken_common.config.loading import validate
from voken_common.config.schedules import build_schedule
from voken_common.errors import NonFiniteError
from voken_torch.optimization import optim
from voken_torch.tokenizer.state import averaged_autoencoder, create_state
from voken_torch.tokenizer.step import TokenizerStep


def config_of(kind="lfq", discriminator="blur", dtype="float64", **sections):
    """A tiny run; keyword arguments are laid over its sections."""
    quantizers = {
        "lfq": {"kind": "lfq", "codebook_size": 64, "code_dim": 6},
        "ibq": {"kind": "ibq", "codebook_size": 24, "code_dim": 6},
        "vq": {"kind": "vq", "codebook_size": 24, "code_dim": 6},
    }
    discriminators = {
        "blur": {"kind": "blur", "hidden_channels": 32, "stages": 1},
        "patchgan": {"kind": "patchgan", "channels": 4, "layers": 1},
    }
    mapping = {
        "name": "tiny",
        "model": {
            "network": "magvit2" if kind == "lfq" else "vqgan",
            "resolution": 16,
            "channels": 32,
            "channel_multipliers": [1, 1],
            "residual_blocks": 1,
            "z_channels": 6,
            "attention_resolutions": [] if kind == "lfq" else [8],
        },
        "quantizer": quantizers[kind],
        "discriminator": discriminators[discriminator],
        "perceptual": {"weights": "none"},
        "optimizer": {"learning_rate": 1e-3},
        "precision": {"param_dtype": dtype, "compute_dtype": dtype},
        "data": {"train": {"kind": "skimage", "region": "all"}, "image_size": 16},
        "training": {"batch_size": 4, "steps": 100},
        "validation": {"batch_size": 4},
    }
    for name, values in sections.items():
        mapping[name] = mapping.get(name, {}) | values if isinstance(values, dict) else values
    return validate(mapping, origin="test")


def build(config):
    state = create_state(config)
    return TokenizerStep(config, state, build_schedule(config, 10, config.training.steps)), state


def images_of(seed=0, count=4, size=16):
    return torch.as_tensor(np.random.default_rng(seed).uniform(-1, 1, (count, 3, size, size)))


def flat(values, prefix=""):
    """Nested dictionaries of tensors as one dictionary of copies."""
    result = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value.clone()}
    return result


def assert_same(left, right, tolerance=0.0):
    assert left.keys() == right.keys()
    for key, value in left.items():
        torch.testing.assert_close(value, right[key], rtol=tolerance, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("kind", ["lfq", "ibq", "vq"])
def test_micro_batches_add_up(kind):
    # Nothing here depends on other images of the batch, so cutting it changes nothing.
    entropy = {"lfq": {"batch_entropy_weight": 0.0}, "ibq": {"use_entropy": False}, "vq": {}}[kind]
    config = config_of(kind, adversarial={"lecam_weight": 0.0})
    quantizer = config.quantizer.model_copy(update=entropy)
    results = []
    for parts in (1, 2):
        optimizer = config.optimizer.model_copy(update={"gradient_accumulation": parts})
        step, state = build(config.model_copy(update={"optimizer": optimizer, "quantizer": quantizer}))
        metrics = step(state, images_of())
        for of_the_batch in ("codebook_entropy", "entropy_loss", "lecam_loss"):
            metrics.pop(of_the_batch, None)
        state.lecam = state.lecam._replace(real=torch.zeros(1), fake=torch.zeros(1))
        results.append(({k: v.detach() for k, v in metrics.items()}, flat(state.to_dict())))
    assert_same(results[0][0], results[1][0], 1e-9)
    assert_same(results[0][1], results[1][1], 1e-7)


@pytest.mark.parametrize("discriminator", ["blur", "patchgan"])
@pytest.mark.parametrize("kind", ["lfq", "ibq"])
def test_a_failed_step_changes_nothing_and_names_its_terms(kind, discriminator):
    step, state = build(config_of(kind, discriminator))
    step(state, images_of(0))
    before = flat(state.to_dict())
    bad = images_of(1)
    bad[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"step 2: not finite: .*reconstruction_loss.*The update was not kept"):
        step(state, bad)
    assert_same(flat(state.to_dict()), before)
    twin_step, twin = build(step.config)
    for seed in (0, 2):
        twin_step(twin, images_of(seed))
    step(state, images_of(2))
    assert_same(flat(state.to_dict()), flat(twin.to_dict()))


def test_a_generator_that_fails_after_the_discriminator_moved():
    step, state = build(config_of("ibq", "patchgan"))
    step(state, images_of(0))
    with torch.no_grad():
        state.players.autoencoder.codebook.mul_(1e200)
    before = flat(state.to_dict())
    with pytest.raises(NonFiniteError, match="step 2: not finite: codebook_loss, .*quant_loss"):
        step(state, images_of(1))
    assert_same(flat(state.to_dict()), before)


def test_wrong_images_are_refused():
    step, state = build(config_of(optimizer={"gradient_accumulation": 2}))
    with pytest.raises(ValueError, match=r"images have shape \(4, 16, 16, 3\): expected \(B, 3, H, W\)"):
        step(state, images_of().movedim(1, -1))
    with pytest.raises(ValueError, match="a multiple of optimizer.gradient_accumulation 2"):
        step(state, images_of(count=3))
    assert state.step == 0


def test_averages_follow_the_parameters_and_are_shared_with_the_evaluation_network():
    config = config_of(optimizer={"ema_decay": 0.9})
    step, state = build(config)
    network = averaged_autoencoder(config, state)
    expected = {key: value.clone() for key, value in state.generator_ema.items()}
    step(state, images_of())
    for key, value in state.generator.items():
        expected[key] -= 0.1 * (expected[key] - value)
    assert_same(state.generator_ema, expected, 1e-12)
    assert_same({key: value.detach() for key, value in network.named_parameters()}, state.generator_ema)


def test_clipping_bounds_the_gradient_that_is_used():
    # Adam divides by the gradient's size, so its first moment shows what it was given.
    config = config_of(optimizer={"gradient_clip": 1e-3})
    step, state = build(config)
    metrics = step(state, images_of())
    assert metrics["generator_grad_norm"] > 1e-2
    first = optim.moments(state.generator_optimizer, state.players.autoencoder)["mu"].values()
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(m) for m in first]))
    assert norm.item() == pytest.approx(0.5 * 1e-3, rel=1e-9)


@pytest.mark.parametrize("kind", ["lfq", "ibq"])
def test_state_goes_through_a_dictionary(kind):
    config = config_of(kind, "patchgan")
    step, state = build(config)
    step(state, images_of(0))
    saved = copy.deepcopy(state.to_dict())
    step(state, images_of(1))
    other_step, other = build(config)
    other.load_dict(saved)
    other_step(other, images_of(1))
    assert_same(flat(other.to_dict()), flat(state.to_dict()))


def test_a_dictionary_of_another_run_is_refused_whole():
    state, other = create_state(config_of()), create_state(config_of("ibq"))
    before = flat(state.to_dict())
    with pytest.raises(NameMismatch, match=r"training state, generator: .* missing"):
        state.load_dict(other.to_dict())
    values = state.to_dict()
    values["lecams"] = values.pop("lecam")
    with pytest.raises(NameMismatch, match=r"missing: lecam \(nearest: lecams\)"):
        state.load_dict(values)
    assert_same(flat(state.to_dict()), before)


def test_lecam_averages_of_other_processes_become_their_mean():
    state = create_state(config_of())
    values = state.to_dict()
    values["lecam"] = {"real": torch.tensor([1.0, 3.0]), "fake": torch.tensor([-1.0, 0.0])}
    state.load_dict(values)
    assert state.lecam.real.tolist() == [2.0]
    assert state.lecam.fake.tolist() == [-0.5]


def test_initial_values_depend_on_the_seed_alone():
    torch.manual_seed(1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    first = flat(create_state(config_of()).to_dict())
    assert torch.rand(1) == drawn
    assert_same(first, flat(create_state(config_of()).to_dict()))
    other = create_state(config_of(seed=1)).generator["encoder.conv_in.weight"]
    assert not torch.equal(first["generator/encoder.conv_in.weight"], other)


@pytest.mark.parametrize("kind", ["lfq", "ibq"])
def test_mixed_precision_keeps_weights_and_losses_in_float32(kind):
    precision = {"param_dtype": "float32", "compute_dtype": "bfloat16"}
    results = {}
    for name, changes in (("float32", {"compute_dtype": "float32"}), ("bfloat16", {})):
        step, state = build(config_of(kind, "patchgan", precision=precision | changes))
        results[name] = step(state, images_of())
        assert {value.dtype for value in state.generator.values()} == {torch.float32}
    assert {value.dtype for value in results["bfloat16"].values()} == {torch.float32}
    for term in ("reconstruction_loss", "total_loss", "discriminator_loss"):
        assert results["bfloat16"][term].item() == pytest.approx(results["float32"][term].item(), rel=0.05)
        assert results["bfloat16"][term] != results["float32"][term]


@pytest.mark.parametrize("kind", ["lfq", "ibq"])
def test_recomputation_changes_nothing(kind):
    results = []
    for remat in (False, True):
        step, state = build(config_of(kind, precision={"remat": remat}))
        step(state, images_of())
        results.append(flat(state.to_dict()))
    assert_same(*results, tolerance=1e-12)


@pytest.mark.parametrize("remat", [False, True])
def test_dropout_follows_from_the_state(remat):
    config = config_of("ibq", model={"dropout": 0.5}, precision={"remat": remat})
    results = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        step, state = build(config)
        metrics = [step(state, images_of())["total_loss"].item() for _ in range(2)]
        results.append((metrics, flat(state.to_dict())))
    assert results[0][0] == results[1][0]
    assert_same(results[0][1], results[1][1])
    quiet_step, quiet = build(config_of("ibq"))
    assert quiet_step(quiet, images_of())["total_loss"].item() != results[0][0][0]


def test_both_terms_start_late():
    step, state = build(config_of("ibq", "patchgan", adversarial={"start_step": 1, "generator_weight": None}))
    early, late = step(state, images_of(0)), step(state, images_of(1))
    assert early["discriminator_factor"] == 0
    assert early["generator_loss"] == 0
    assert early["discriminator_loss"] == 0
    assert late["discriminator_factor"] == 1
    assert late["discriminator_loss"] != 0
    assert int(state.buffers["main.3.num_batches_tracked"]) == 6


def test_what_only_jax_trains_is_refused():
    for changes, message in (
        ({"mesh": {"model": 2}}, "mesh.model is 2: in PyTorch weights are split over mesh.fsdp alone"),
        ({"mesh": {"data": 8}}, r"mesh.data 8 x mesh.fsdp 1 does not use the 1 process\(es\) that were"),
        ({"quantizer": {"shard_codes": True}}, "only JAX training splits a codebook"),
    ):
        config = config_of("ibq", **changes)
        with pytest.raises(ValueError, match=message):
            TokenizerStep(config, create_state(config), build_schedule(config, 1, 10))
