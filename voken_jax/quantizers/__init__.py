"""Quantizers: pure functions over arrays, any leading axes, code dimension last, named results.

`lfq`, `ibq` and `vq` are the functions; import their output types and helpers from the modules of the same names.
"""

from voken_jax.quantizers.ibq import IBQOutput, codebook_lookup, ibq, ibq_encode
from voken_jax.quantizers.lfq import LFQOutput, indices_to_codes, join_indices, lfq, lfq_indices, split_indices
from voken_jax.quantizers.sharded import ibq_encode_sharded, ibq_sharded, vq_sharded
from voken_jax.quantizers.statistics import (
    CodebookStatistics,
    init_statistics,
    merge_statistics,
    perplexity,
    update_statistics,
    usage,
)
from voken_jax.quantizers.vq import VQOutput, vq, vq_encode

__all__ = [
    "CodebookStatistics",
    "IBQOutput",
    "LFQOutput",
    "VQOutput",
    "codebook_lookup",
    "ibq",
    "ibq_encode",
    "ibq_encode_sharded",
    "ibq_sharded",
    "indices_to_codes",
    "init_statistics",
    "join_indices",
    "lfq",
    "lfq_indices",
    "merge_statistics",
    "perplexity",
    "split_indices",
    "update_statistics",
    "usage",
    "vq",
    "vq_encode",
    "vq_sharded",
]
