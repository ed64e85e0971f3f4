"""Split codebooks on 8 simulated devices: the numbers of one device, and memory that falls with the shards."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from voken_jax.quantizers import ibq, ibq_encode, ibq_encode_sharded, ibq_sharded, lfq, vq, vq_sharded

MESHES = {"data 2, model 4": (2, 1, 4), "data 2, fsdp 2, model 2": (2, 2, 2), "model 8": (1, 1, 8)}
# Float64 blocks of 6 codes and 3 tokens on each device, so that shards are ragged and tiled.
BUDGET = 8 * 4 * 6 * 3
OPTIONS = {"temperature": 0.05, "beta": 0.4, "sample_weight": 0.8, "batch_weight": 1.2}


def make_mesh(shape):
    return jax.make_mesh(shape, ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)


def problem(mesh=None, tokens=(8, 3), codes=104, dim=5):
    rng = np.random.default_rng(0)
    z, w = (jnp.asarray(rng.standard_normal((*tokens, dim))) for _ in range(2))
    codebook = jnp.asarray(rng.standard_normal((codes, dim)))
    if mesh is None:
        return z, codebook, w
    rows, replicas = NamedSharding(mesh, P("model")), NamedSharding(mesh, P(("data", "fsdp")))
    return jax.device_put(z, replicas), jax.device_put(codebook, rows), jax.device_put(w, replicas)


@cache
def gradients(function):
    """Compiled (objective, outputs), gradients."""

    def objective(z, codebook, w):
        out = function(z, codebook)
        loss = 0.9 * out.quant_loss + 0.3 * out.entropy_loss if hasattr(out, "quant_loss") else out.loss
        return loss + jnp.sum(out.quantized * w), out

    return jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))


def assert_same(found, expected, tolerance=1e-12):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))


IBQ_ALONE = {use: partial(ibq, use_entropy=use, **OPTIONS) for use in (True, False)}


@pytest.mark.parametrize("use_entropy", [True, False])
@pytest.mark.parametrize("shape", MESHES.values(), ids=MESHES)
def test_ibq_equals_one_device(x64, shape, use_entropy):
    mesh = make_mesh(shape)
    split = partial(ibq_sharded, mesh=mesh, use_entropy=use_entropy, memory_budget_bytes=BUDGET, **OPTIONS)
    found = gradients(split)(*problem(mesh))
    assert_same(found, gradients(IBQ_ALONE[use_entropy])(*problem()))
    (_, out), (_, dcodebook) = found
    assert (jax.jit(partial(ibq_encode_sharded, mesh=mesh))(*problem(mesh)[:2]) == out.indices).all()
    assert dcodebook.sharding.spec == P("model")


def test_ties_across_shards_go_to_the_lowest_number():
    mesh = make_mesh((1, 1, 8))
    codebook = jnp.tile(jnp.asarray([[0.0, 1.0], [1.0, 0.0]]), (16, 1))
    z = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert ibq_encode_sharded(z, codebook, mesh=mesh).tolist() == ibq_encode(z, codebook).tolist() == [1, 0, 0]


def test_vq_equals_one_device(x64):
    mesh = make_mesh((2, 1, 4))
    found = gradients(partial(vq_sharded, mesh=mesh, legacy=False, memory_budget_bytes=BUDGET))(*problem(mesh))
    assert_same(found, gradients(partial(vq, legacy=False))(*problem()))


def test_statistics_per_device_are_the_mean_over_the_parts_of_the_batch(x64):
    mesh = make_mesh((4, 1, 2))
    split = partial(ibq_sharded, mesh=mesh, statistics_scope="per_device", **OPTIONS)

    def parts(z, codebook):
        out = [ibq(part, codebook, **OPTIONS) for part in jnp.split(z, 4)]
        joined = jax.tree.map(lambda *xs: jnp.stack(xs), *out)
        means = {name: getattr(joined, name).mean() for name in joined._fields[2:]}
        quantized, indices = (jnp.concatenate(x) for x in (joined.quantized, joined.indices))
        return joined._replace(quantized=quantized, indices=indices, **means)

    assert_same(gradients(split)(*problem(mesh)), gradients(parts)(*problem()))


@pytest.mark.parametrize("function", [IBQ_ALONE[True], vq], ids=["ibq", "vq"])
def test_the_unsharded_functions_take_split_tokens(x64, function):
    mesh = make_mesh((4, 2, 1))
    assert_same(gradients(function)(*problem(mesh)), gradients(function)(*problem()))


def test_lfq_statistics_are_global_over_split_tokens(x64):
    mesh = make_mesh((4, 2, 1))
    x = 0.01 * problem()[0]
    loss = jax.jit(jax.value_and_grad(lambda x: lfq(x, block_bytes=128).aux_loss))
    assert_same(loss(jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp"))))), loss(x))


def compile_large(shape, codes=2**15, dim=16, tokens=64):
    mesh = make_mesh(shape)
    rows, replicas = NamedSharding(mesh, P("model")), NamedSharding(mesh, P(("data", "fsdp")))

    def loss(z, codebook):
        out = ibq_sharded(z, codebook, mesh=mesh, memory_budget_bytes=2**16)
        return out.quant_loss + out.entropy_loss

    shapes = (
        jax.ShapeDtypeStruct((tokens, dim), jnp.float32, sharding=replicas),
        jax.ShapeDtypeStruct((codes, dim), jnp.float32, sharding=rows),
    )
    return jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile()


@pytest.mark.usefixtures("optimized")
def test_every_device_holds_its_codes_alone():
    codebook_bytes = 2**15 * 16 * 4
    whole, split = (compile_large(shape).memory_analysis() for shape in ((8, 1, 1), (2, 1, 4)))
    assert whole.argument_size_in_bytes >= codebook_bytes
    assert split.argument_size_in_bytes < codebook_bytes / 4 + 2**14
    assert split.output_size_in_bytes < codebook_bytes / 4 + 2**14
    assert split.temp_size_in_bytes < codebook_bytes / 4 + 2**19
    assert split.temp_size_in_bytes < whole.temp_size_in_bytes


@pytest.mark.usefixtures("optimized")
def test_the_codebook_is_never_gathered():
    program = compile_large((2, 1, 4)).as_text()
    assert "all-reduce" in program
    assert not re.search(rf"f32\[{2**15},16\]", program)
    assert "all-gather" not in program


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"code_axis": "codes"}, "name each axis"),
        ({"token_axes": ("data", "model")}, "name each axis"),
        ({"statistics_scope": "local"}, "'global' or 'per_device'"),
        ({"codebook": jnp.ones((6, 5))}, "6 codes do not divide"),
        ({"z": jnp.ones((3, 5))}, "3 tokens do not divide"),
    ],
)
def test_errors_say_what_was_found(changes, message):
    arguments = {"z": jnp.ones((4, 5)), "codebook": jnp.ones((8, 5)), "mesh": make_mesh((2, 1, 4))} | changes
    with pytest.raises(ValueError, match=message):
        ibq_sharded(arguments.pop("z"), arguments.pop("codebook"), **arguments)
