"""Quantizers: functions over tensors, any leading axes, code dimension last, named results.

`lfq`, `ibq` and `vq` are the functions; import their output types and helpers from the modules of the same names.
"""

from voken_torch.quantizers.ibq import IBQOutput, codebook_lookup, ibq, ibq_encode
from voken_torch.quantizers.lfq import LFQOutput, indices_to_codes, join_indices, lfq, lfq_indices, split_indices
from voken_torch.quantizers.statistics import (
    CodebookStatistics,
    init_statistics,
    merge_statistics,
    perplexity,
    update_statistics,
    usage,
)
from voken_torch.quantizers.vq import VQOutput, vq, vq_encode

__all__ = [
    "CodebookStatistics",
    "IBQOutput",
    "LFQOutput",
    "VQOutput",
    "codebook_lookup",
    "ibq",
    "ibq_encode",
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
]
