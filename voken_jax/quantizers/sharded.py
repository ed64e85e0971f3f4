"""Quantizers whose codebook is split over a mesh axis: each device streams its own codes.

Shapes: N tokens, K codes, D code dimension.

Every device searches its shard, then one exchange of O(N D) numbers combines maxima, normalisers, expectations and
winners. The average assignment is summed, block by block, over the devices that hold different tokens. In the backward
pass each device makes the gradient of its own codes, and the tokens' gradients are summed over the shards. The passes
are those of `streaming`, with their collectives written out: nothing is left to differentiation through `shard_map`.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from voken_jax.quantizers import assignment, streaming
from voken_jax.quantizers.assignment import Assignment, Collectives, Cotangents, Settings
from voken_jax.quantizers.ibq import IBQOutput, SoftAssignment, as_soft, check_shapes, check_temperature
from voken_jax.quantizers.ibq import assemble as assemble_ibq
from voken_jax.quantizers.streaming import Residuals
from voken_jax.quantizers.vq import VQOutput, nearest
from voken_jax.quantizers.vq import assemble as assemble_vq


class _Layout(NamedTuple):
    """Mesh axes of codes and tokens; hashable."""

    mesh: Mesh
    codes: tuple[str, ...]
    tokens: tuple[str, ...]


def ibq_sharded(
    z: Float[Array, "*batch D"],
    codebook: Float[Array, "K D"],
    *,
    mesh: Mesh,
    code_axis: str = "model",
    token_axes: tuple[str, ...] = ("data", "fsdp"),
    statistics_scope: Literal["global", "per_device"] = "global",
    beta: float = 0.25,
    use_entropy: bool = True,
    temperature: float = 0.01,
    sample_weight: float = 1.0,
    batch_weight: float = 1.0,
    memory_budget_bytes: int | None = None,
) -> IBQOutput:
    """`ibq` with the codebook split over one mesh axis and the tokens over others: the same numbers.

    Args:
      z: any leading axes, code dimension last; the first axis is split over `token_axes`.
      codebook: split by rows over `code_axis`, equally.
      mesh: mesh with the named axes.
      code_axis: mesh axis that splits the codes. Every device along it holds the same tokens.
      token_axes: mesh axes that split the tokens, in order.
      statistics_scope: tokens over which the average assignment is taken: of all devices, or of each device along
        `token_axes` alone, with the mean of the resulting entropies, as data-parallel training in the reference does.
      beta: see `ibq`; so are the arguments that follow.
      use_entropy: see `ibq`.
      temperature: see `ibq`.
      sample_weight: see `ibq`.
      batch_weight: see `ibq`.
      memory_budget_bytes: bound on the temporaries of one device; None: 16 MiB on a CPU, 512 MiB on an accelerator.

    Raises:
      ValueError: if an axis is not in the mesh or the shapes do not divide by the axes' sizes.
    """
    if statistics_scope not in ("global", "per_device"):
        raise ValueError(f"statistics_scope is {statistics_scope!r}; use 'global' or 'per_device'")
    check_shapes(z, codebook)
    flat = z.reshape(-1, z.shape[-1])
    layout = _layout(mesh, code_axis, token_axes, flat, codebook)
    collectives = Collectives(
        codes=layout.codes, tokens=layout.tokens, average=layout.tokens if statistics_scope == "global" else ()
    )
    settings = Settings(check_temperature(temperature), use_entropy, memory_budget_bytes, collectives)
    assigned = _soft_assignment(flat, codebook, settings, layout)
    return assemble_ibq(z, assigned, beta=beta, sample_weight=sample_weight, batch_weight=batch_weight)


def ibq_encode_sharded(
    z: Float[Array, "*batch D"],
    codebook: Float[Array, "K D"],
    *,
    mesh: Mesh,
    code_axis: str = "model",
    token_axes: tuple[str, ...] = ("data", "fsdp"),
    memory_budget_bytes: int | None = None,
) -> Int[Array, "*batch"]:
    """`ibq_encode` with the codebook split over one mesh axis.

    Raises:
      ValueError: if an axis is not in the mesh or the shapes do not divide by the axes' sizes.
    """
    check_shapes(z, codebook)
    flat = z.reshape(-1, z.shape[-1])
    layout = _layout(mesh, code_axis, token_axes, flat, codebook)
    settings = Settings(1.0, False, memory_budget_bytes, Collectives(layout.codes, layout.tokens, layout.tokens))
    search = _shard(partial(streaming.forward, settings=settings), layout, _result_specs(layout))
    return search(flat, codebook).indices.reshape(z.shape[:-1])


def vq_sharded(
    z: Float[Array, "*batch D"],
    codebook: Float[Array, "K D"],
    *,
    mesh: Mesh,
    code_axis: str = "model",
    token_axes: tuple[str, ...] = ("data", "fsdp"),
    beta: float = 0.25,
    legacy: bool = True,
    l2_normalize: bool = False,
    memory_budget_bytes: int | None = None,
) -> VQOutput:
    """`vq` with the codebook split over one mesh axis and the tokens over others: the same numbers.

    Raises:
      ValueError: if an axis is not in the mesh or the shapes do not divide by the axes' sizes.
    """
    check_shapes(z, codebook)
    flat = z.reshape(-1, z.shape[-1])
    layout = _layout(mesh, code_axis, token_axes, flat, codebook)

    def search(tokens: Array, codes: Array) -> Array:
        score, index = nearest(tokens, codes, l2_normalize, memory_budget_bytes)
        best = lax.pmax(score, layout.codes)
        index += lax.axis_index(layout.codes) * codes.shape[0]
        return lax.pmin(jnp.where(score == best, index, jnp.iinfo(jnp.int32).max), layout.codes)

    indices = _shard(search, layout, P(layout.tokens))(lax.stop_gradient(flat), lax.stop_gradient(codebook))
    codes = _lookup(codebook, indices, layout)
    indices = indices.reshape(z.shape[:-1])
    return assemble_vq(z, codes.reshape(z.shape), indices, beta=beta, legacy=legacy)


def _layout(
    mesh: Mesh, code_axis: str, token_axes: tuple[str, ...], z: Float[Array, "N D"], codebook: Float[Array, "K D"]
) -> _Layout:
    axes = (code_axis, *token_axes)
    missing = [axis for axis in axes if axis not in mesh.axis_names]
    if missing or len(set(axes)) != len(axes):
        raise ValueError(f"found code axis {code_axis!r} and token axes {token_axes}; name each axis of {mesh} once")
    shards = mesh.shape[code_axis]
    if codebook.shape[0] % shards:
        raise ValueError(f"{codebook.shape[0]} codes do not divide by the {shards} devices of axis {code_axis!r}")
    groups = 1
    for axis in token_axes:
        groups *= mesh.shape[axis]
    if z.shape[0] % groups:
        raise ValueError(f"{z.shape[0]} tokens do not divide by the {groups} devices of axes {token_axes}")
    return _Layout(mesh, (code_axis,), tuple(token_axes))


def _shard(function: Any, layout: _Layout, out_specs: Any, in_specs: Any = None) -> Any:
    """`shard_map` over tokens and codes; replication is by construction, so it is not re-derived from types."""
    specs = (P(layout.tokens), P(layout.codes)) if in_specs is None else in_specs
    return jax.shard_map(function, mesh=layout.mesh, in_specs=specs, out_specs=out_specs, check_vma=False)


def _specs(structure: Any, **fields: P) -> Any:
    """Return a structure of partition specs in the shape of the arrays."""
    return structure(**fields)


def _result_specs(layout: _Layout) -> Any:
    tokens = P(layout.tokens)
    return _specs(Assignment, hard=tokens, indices=tokens, sample_entropy=P(), average_entropy=P())


def _residual_specs(layout: _Layout, settings: Settings) -> Any:
    tiled = P(None, layout.tokens)
    entropy = tiled if settings.use_entropy else P()
    return _specs(
        Residuals,
        indices=tiled,
        maximum=tiled,
        log_mass=tiled,
        expectation=P(None, None, layout.tokens),
        sharp_log_mass=entropy,
        entropy=entropy,
        slope_mean=entropy,
        slope=P(layout.codes) if settings.use_entropy else P(),
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _soft_assignment(
    z: Float[Array, "N D"], codebook: Float[Array, "K D"], settings: Settings, layout: _Layout
) -> SoftAssignment:
    search = _shard(partial(streaming.forward, settings=settings), layout, _result_specs(layout))
    return as_soft(search(z, codebook), assignment.compute_dtype(z, codebook))


def _assignment_forward(
    z: Array, codebook: Array, settings: Settings, layout: _Layout
) -> tuple[SoftAssignment, tuple[Any, ...]]:
    specs = (_result_specs(layout), _residual_specs(layout, settings))
    search = _shard(partial(streaming.forward_with_residuals, settings=settings), layout, specs)
    result, residuals = search(z, codebook)
    return as_soft(result, assignment.compute_dtype(z, codebook)), (z, codebook, residuals)


def _assignment_backward(settings: Settings, layout: _Layout, saved: Any, given: Any) -> tuple[Array, Array]:
    z, codebook, residuals = saved
    cotangents = Cotangents(given.soft, given.hard, given.sample_entropy, given.average_entropy)
    tokens, codes = P(layout.tokens), P(layout.codes)
    upstream = _specs(Cotangents, soft=tokens, hard=tokens, sample_entropy=P(), average_entropy=P())
    in_specs = (tokens, codes, _residual_specs(layout, settings), upstream)
    gradient = _shard(partial(streaming.backward, settings=settings), layout, (tokens, codes), in_specs)
    return gradient(z, codebook, residuals, cotangents)


_soft_assignment.defvjp(_assignment_forward, _assignment_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lookup(codebook: Float[Array, "K D"], indices: Int[Array, "N"], layout: _Layout) -> Float[Array, "N D"]:
    """Rows of a split codebook: the owner of a row gives it to the devices that need it."""
    find = _shard(
        partial(assignment.lookup, axes=layout.codes), layout, P(layout.tokens), (P(layout.codes), P(layout.tokens))
    )
    return find(codebook, indices)


def _lookup_forward(codebook: Array, indices: Array, layout: _Layout) -> tuple[Array, tuple[Array, Array]]:
    return _lookup(codebook, indices, layout), (indices, codebook)


def _lookup_backward(layout: _Layout, saved: tuple[Array, Array], given: Array) -> tuple[Array, None]:
    indices, codebook = saved

    def scatter(rows: Array, update: Array, codes: Array) -> Array:
        return lax.psum(assignment.add_rows(jnp.zeros_like(codes), rows, update, layout.codes), layout.tokens)

    specs = (P(layout.tokens), P(layout.tokens), P(layout.codes))
    return _shard(scatter, layout, P(layout.codes), specs)(indices, given, codebook), None


_lookup.defvjp(_lookup_forward, _lookup_backward)
