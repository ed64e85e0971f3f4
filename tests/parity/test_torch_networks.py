"""PyTorch networks and losses: autoencoders, discriminators, LPIPS, adversarial terms."""

import json
import re
from unittest import mock

import numpy as np
import pytest
import torch

from tests.support import objectives
from tests.support.golden_cases import (
    FORWARD_FLOAT32,
    GRADIENT_FLOAT32,
    assert_close,
    assert_numbers,
    uniform,
    weight,
)
from tests.support.reference_config import model_section
from voken_common.config.schema.adversarial import BlurConfig, PatchGANConfig
from voken_common.config.schema.model import ModelConfig
from voken_common.config.schema.quantizer import IBQConfig, LFQConfig
from voken_common.config.schema.video import PatchGAN3DConfig
from voken_torch.models.autoencoder import Autoencoder
from voken_torch.models.discriminator import build_discriminator
from voken_torch.models.lpips import LPIPS
from voken_torch.tokenizer.losses import (
    LecamAverages,
    discriminator_loss,
    generator_loss,
    lecam_regularizer,
    update_lecam,
)

KINDS = [
    "autoencoder_lfq",
    "autoencoder_lfq_2024",
    "autoencoder_ibq",
    "autoencoder_video",
    "discriminator_patchgan",
    "discriminator_patchgan3d",
    "discriminator_blur",
    "lpips_vgg",
    "gan_losses",
]

NETWORKS = {
    "autoencoder_lfq": "magvit2",
    "autoencoder_lfq_2024": "magvit2",
    "autoencoder_ibq": "vqgan",
    "autoencoder_video": "magvit2_video",
}
CODEBOOK = "quantize.embedding.weight"
TORCH_FUNCTIONS = {"mean": torch.mean, "sum": torch.sum, "abs": torch.abs, "sqrt": torch.sqrt}


def evaluate(text, **arguments):
    """A golden objective over tensors."""
    with mock.patch.dict(objectives._FUNCTIONS, TORCH_FUNCTIONS):
        return objectives.evaluate(text, **arguments)


def kinds(*names):
    """Cases of these kinds alone."""

    def mark(function):
        function.kinds = names
        return function

    return mark


@pytest.fixture(params=["float64", "float32"])
def precision(request):
    return request.param


def forward_tolerance(precision):
    return FORWARD_FLOAT32 if precision == "float32" else None


def tensor(array, precision, grad=False):
    return torch.tensor(np.asarray(array), dtype=getattr(torch, precision), requires_grad=grad)


def lpips_rule(key, shape, seed):
    """LPIPS constants and non-negative heads."""
    if key.startswith("scaling_layer."):
        values = {"shift": [-0.030, -0.088, -0.188], "scale": [0.458, 0.448, 0.450]}
        return np.asarray(values[key.rpartition(".")[2]]).reshape(shape)
    array = weight(key, shape, seed)
    return np.abs(array) * np.sqrt(shape[1]) / shape[1] if key.startswith("lin") else array


def fill(network, seed, precision, prefix="", rule=weight):
    """The network with recipe weights, loaded strictly; blur kernels keep the constants they are born with."""
    network.to(getattr(torch, precision))
    own = network.state_dict()
    recipe = {
        key: value if key.endswith(".1.kernel") else torch.as_tensor(rule(prefix + key, tuple(value.shape), seed))
        for key, value in own.items()
    }
    network.load_state_dict(recipe, strict=True)
    return network


def norms(gradients):
    return {key: float(grad.norm()) for key, grad in gradients.items()}


def autoencoder_of(case, precision):
    dd, lfq = case.config["ddconfig"], case.kind != "autoencoder_ibq"
    section = model_section(dd, NETWORKS[case.kind]) | {"adaptive_norm": case.kind != "autoencoder_lfq_2024"}
    model = ModelConfig.model_validate_json(json.dumps(section))
    if lfq:
        quantizer = LFQConfig(codebook_size=2 ** dd["z_channels"], code_dim=dd["z_channels"])
    else:
        quantizer = IBQConfig(codebook_size=2, code_dim=case.config["embed_dim"])
    return fill(Autoencoder(model, quantizer), case.seed, precision)


@kinds("autoencoder_lfq", "autoencoder_lfq_2024", "autoencoder_ibq", "autoencoder_video")
def test_autoencoder(case, precision):
    network, x = autoencoder_of(case, precision), tensor(case.input(), precision)
    shapes = {key: list(value.shape) for key, value in network.state_dict().items() if key != CODEBOOK}
    assert shapes == {key: shape for key, shape in case.config["shapes"].items() if key != CODEBOOK}
    h = network.encode(x)
    codes = h
    if case.kind != "autoencoder_ibq":
        codes = h + (torch.where(h > 0, 1.0, -1.0).to(h.dtype) - h).detach()
    y = network.decode(codes)
    assert_close(h.detach().movedim(-1, 1).numpy(), case.arrays["out/h"], "h", forward_tolerance(precision))
    assert_close(y.detach().numpy(), case.arrays["out/y"], "y", forward_tolerance(precision))
    if precision == "float64":
        parameters = {key: value for key, value in network.named_parameters() if key != CODEBOOK}
        objective = evaluate(case.config["objective"], decoder_out=y, x=x)
        gradients = torch.autograd.grad(objective, list(parameters.values()))
        assert_numbers(norms(dict(zip(parameters, gradients))), case.config["grad_norms"], "gradient norm")


def discriminator_of(case, precision):
    spec = case.config["config"]
    if case.kind == "discriminator_patchgan":
        config = PatchGANConfig(channels=spec.get("ndf", 64), layers=spec.get("n_layers", 3))
    elif case.kind == "discriminator_patchgan3d":
        config = PatchGAN3DConfig(channels=spec.get("ndf", 64), layers=spec.get("n_layers", 4))
    else:
        config = BlurConfig(
            hidden_channels=spec.get("hidden_channels", 128),
            stages=spec.get("num_stages", 4),
            blur_resample=spec.get("blur_resample", True),
            blur_kernel_size=spec.get("blur_kernel_size", 4),
        )
    return fill(build_discriminator(config, case.config["input"]["shape"][1]), case.seed, precision)


@kinds("discriminator_patchgan", "discriminator_patchgan3d", "discriminator_blur")
def test_discriminator(case, precision):
    network, x = discriminator_of(case, precision), tensor(case.input(), precision, grad=True)
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == case.config["shapes"]
    tolerance = forward_tolerance(precision)
    logits = network.train()(x)
    assert_close(logits.detach().numpy(), case.arrays["out/train_logits"], "logits", tolerance)
    parameters = dict(network.named_parameters())
    objective = evaluate(case.config["objective"], train_logits=logits)
    grad_x, *gradients = torch.autograd.grad(objective, (x, *parameters.values()))
    evaluated = network.eval()(x).detach().numpy()
    expected = case.arrays["out/eval_logits_after_one_train_step"]
    assert_close(evaluated, expected, "logits in evaluation mode", tolerance)
    if precision == "float64":
        assert_close(grad_x.numpy(), case.arrays["grad/x"], "gradient of x")
        assert_numbers(norms(dict(zip(parameters, gradients))), case.config["grad_norms"], "gradient norm")
        buffers = dict(network.named_buffers())
        for key, array in case.arrays.items():
            if key.startswith("buffer/"):
                assert_close(buffers[key.removeprefix("buffer/")].numpy(), array, key)


@kinds("lpips_vgg")
def test_lpips(case, precision):
    network, spec = fill(LPIPS(), case.seed, precision, rule=lpips_rule), case.config
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == spec["shapes"]
    x, y = (tensor(uniform(spec["shape"], case.seed, n) * spec["scale"], precision, grad=True) for n in spec["inputs"])
    value = network(x.detach(), y)
    (grad,) = torch.autograd.grad(evaluate(spec["objective"], value=value), y)
    expected = case.arrays["out/value"]
    assert_close(value.detach().numpy().reshape(expected.shape), expected, "value", forward_tolerance(precision))
    tolerance = GRADIENT_FLOAT32 if precision == "float32" else None
    assert_close(grad.numpy(), case.arrays["grad/y"], "gradient", tolerance)


def logits_of(text, seed, precision):
    """Logits from their description: uniform((shape),seed,"name")."""
    shape, name = re.fullmatch(r'uniform\(\(([\d, ]+)\), *seed, *"(\w+)"\)', text).groups()
    return tensor(uniform(tuple(int(side) for side in shape.split(",")), seed, name), precision)


@kinds("gan_losses")
def test_losses(case, precision):
    real = logits_of(case.config["logits_real"], case.seed, precision)
    fake = logits_of(case.config["logits_fake"], case.seed, precision)
    decay = float(re.search(r"decay ([\d.]+)", case.config["lecam"]).group(1).rstrip("."))
    zero = torch.zeros((), dtype=real.dtype)
    averages = update_lecam(LecamAverages(zero, zero), real, fake, decay)
    averages = update_lecam(averages, fake, real, decay)
    found = {
        "hinge_d": discriminator_loss(real, fake, "hinge"),
        "vanilla_d": discriminator_loss(real, fake, "vanilla"),
        "nonsat_d": discriminator_loss(real, fake, "non_saturating"),
        "nonsat_g": generator_loss(fake),
        "lecam_real_ema": averages.real,
        "lecam_fake_ema": averages.fake,
        "lecam_reg": lecam_regularizer(averages, real, fake),
    }
    assert {f"out/{name}" for name in found} == set(case.arrays)
    for name, value in found.items():
        assert_close(value.numpy(), case.arrays[f"out/{name}"], name, forward_tolerance(precision))
