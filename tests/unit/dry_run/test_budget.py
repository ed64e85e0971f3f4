"""Budgets of a step: arithmetic read off a traced program, communication off a compiled one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from voken_jax.dry_run.budget import Budget, Machine, Traffic, communication, lines, matrix_flops
from voken_jax.train import main, parse


def flops(function, *shapes):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return matrix_flops(jax.make_jaxpr(function)(*shapes).jaxpr)


def test_a_product_and_its_gradients():
    assert flops(jnp.matmul, (5, 7), (7, 3)) == 2 * 5 * 7 * 3
    assert flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (4, 5, 7), (4, 7, 3)) == 4 * 2 * 5 * 7 * 3
    loss = jax.grad(lambda w, x: ((x @ w) ** 2).sum(), argnums=(0, 1))
    assert flops(loss, (7, 3), (5, 7)) == 3 * 2 * 5 * 7 * 3


def test_loops_recomputation_and_branches():
    def layers(w, x, remat):
        layer = jax.checkpoint(lambda x, w: jnp.tanh(x @ w)) if remat else lambda x, w: jnp.tanh(x @ w)
        return jax.lax.scan(lambda x, w: (layer(x, w), None), x, w)[0].sum()

    once = 2 * 4 * 8 * 8
    assert flops(lambda w, x: layers(w, x, False), (6, 8, 8), (4, 8)) == 6 * once
    assert flops(jax.grad(lambda w, x: layers(w, x, False)), (6, 8, 8), (4, 8)) == 6 * 3 * once
    assert flops(jax.grad(lambda w, x: layers(w, x, True)), (6, 8, 8), (4, 8)) == 6 * 4 * once

    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x @ x @ x)

    assert flops(either, (8, 8)) == 2 * 2 * 8**3


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_and_their_gradients(stride):
    def convolve(kernel, x):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return (jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, "SAME", dimension_numbers=dimensions) ** 2).sum()

    side = 32 // stride
    expected = 2 * (2 * side * side * 16) * (4 * 4 * 8)
    assert flops(convolve, (4, 4, 8, 16), (2, 32, 32, 8)) == expected
    assert flops(jax.grad(convolve, (0, 1)), (4, 4, 8, 16), (2, 32, 32, 8)) == 3 * expected


def test_shapes_inside_a_shard_map_are_those_of_one_device():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"))
    assert flops(mapped, (16, 4), (4, 3)) == 2 * 16 * 4 * 3


def test_collectives_of_a_sharded_program(optimized):
    """Data over 4, weights over 2: layers are gathered twice in a loop, gradients are summed over both axes."""
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def loss(w, x):
        return (jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0] ** 2).sum()

    where = NamedSharding(mesh, P(None, "fsdp")), NamedSharding(mesh, P(("data", "fsdp")))
    program = jax.jit(jax.grad(loss), in_shardings=where, out_shardings=where[0])
    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((5, 64, 64), (16, 64)))
    traffic = communication(program.lower(*shapes).compile().as_text())
    matrix = 64 * 64 * 4
    assert traffic["all-gather"] == Traffic(10, 10 * matrix, 10 * matrix / 2)
    total = sum(value.sent for kind, value in traffic.items() if kind != "all-gather")
    # Over fsdp the sum of a whole matrix, or of scattered halves; over data that of the half: 2 (n - 1) / n of it.
    halves = 2 * 3 / 4 * matrix / 2
    assert total in (5 * (2 * 1 / 2 * matrix + halves), 5 * (matrix / 2 + halves))


PROGRAM = """HloModule step

%body (p: f32[4]) -> f32[4] {
  %r = f32[1024]{0} reduce-scatter(%x), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add
  ROOT %t = f32[4]{0} tuple(%r)
}

%wrapped (p: bf16[8]) -> bf16[8] {
  ROOT %a = bf16[512]{0} all-to-all(%p), replica_groups={{0,1,2,3},{4,5,6,7}}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %g = (f32[128]{0}, f32[1024]{0}) all-gather-start(%y), replica_groups=[1,8]<=[8], dimensions={0}
  %d = f32[1024]{0} all-gather-done(%g)
  %s = (f32[10]{0}, f64[10]{0}) all-reduce(%b, %c), replica_groups={{0,1}}, to_apply=%add
  %alone = f32[10]{0} all-reduce(%b), replica_groups={{0},{1}}, to_apply=%add
  %part = f32[16]{0} all-reduce(%b), replica_groups=mesh['a'=4,'b'=2] {'a':(1)2,'b'}, to_apply=%add
  %m = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(%z), source_target_pairs={{0,1}}
  %i = (bf16[8]) async-start(%q), calls=%wrapped
  %w = f32[4]{0} while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"12"}}
}
"""


def test_collectives_in_every_form():
    found = communication(PROGRAM)
    assert found["all-gather"] == Traffic(1, 4096.0, 4096 * 7 / 8)
    reduced = 2 * 1 / 2 * 120 + 0 + 2 * 3 / 4 * 64
    assert found["all-reduce"] == Traffic(3, 120 + 40 + 64, reduced)
    assert found["reduce-scatter"] == Traffic(12, 12 * 4096.0, 12 * 3 * 4096.0)
    assert found["all-to-all"] == Traffic(1, 1024.0, 1024 * 3 / 4)
    assert found["collective-permute"] == Traffic(1, 24.0, 24.0)
    with pytest.raises(ValueError, match="groups of devices in a form that is not known: %b"):
        communication(PROGRAM.replace("replica_groups=mesh['a'=4,'b'=2] {'a':(1)2,'b'}", "replica_groups=all"))


def test_what_is_expected_of_a_machine():
    budget = Budget(flops=4e12, traffic={"all-reduce": Traffic(1, 5e8, 1e9)}, images=32)
    expected = budget.expected(Machine(peak_flops=100e12, utilisation=0.4, link_bytes=100e9))
    assert expected["compute_seconds"] == pytest.approx(0.1)
    assert expected["communication_seconds"] == pytest.approx(0.01)
    assert expected["images_per_second_if_overlapped"] == pytest.approx(320)
    assert expected["images_per_second_if_not"] == pytest.approx(32 / 0.11)
    text = "\n".join(lines(budget, Machine(100e12, 0.4)))
    assert "100 TFLOP/s at 0.4 (assumed, not measured)" in text
    assert "all-reduce" in text
    assert not any("expected" in line for line in lines(budget, None))


@pytest.mark.parametrize("options", [["--peak-tflops", "-1"], ["--peak-tflops", "1", "--utilisation", "2"]])
def test_figures_that_no_machine_has(options, tmp_path, capsys):
    from tests.support.tiny import write

    assert main(["--config", str(write(tmp_path)), "--dry-run", *options]) == 2
    assert "expected a positive peak, a utilisation in (0, 1]" in capsys.readouterr().err
    assert parse(["--config", "a"]).peak_tflops is None


def test_a_dry_run_reports_it(tmp_path, capsys):
    from tests.support.tiny_generator import generator_mapping, write_generator
    from voken_common.config.loading import load_any_config
    from voken_common.training.flops import sample_flops
    from voken_jax.dry_run.budget import Machine
    from voken_jax.dry_run.command import dry_run

    file = write_generator(tmp_path, generator_mapping(tmp_path, mesh={"fsdp": 2}))
    config = load_any_config(file)
    report = dry_run(config, Machine(1e12, 0.5, 1e9))
    # All of causal attention is computed, of which the model's own count takes the half that is visible.
    model = sample_flops(config.model) * config.training.batch_size / 8
    assert model < report["matrix_flops_per_device"] < 1.5 * model
    assert report["sent_bytes_per_device"] > 4 * report["parameters"] / 2
    assert report["images_per_second_if_not"] < report["images_per_second_if_overlapped"]
    printed = capsys.readouterr().out
    assert "assumed, not measured" in printed
    assert np.isfinite(report["compute_seconds"])
