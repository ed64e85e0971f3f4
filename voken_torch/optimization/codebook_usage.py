"""Track the codes that training uses: a flag per code in every process, read on logging steps only.

Shape legend: K codes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from voken_common.training.collapse import CodeUse
from voken_torch.parallel.sharding import process_count


class SeenCodes:
    """Codes used since the last look.

    Args:
        codes: size of the codebook.
        device: where the ids come from.
    """

    def __init__(self, codes: int, device: torch.device):
        # Integers, because not every backend reduces booleans.
        self._flags = torch.zeros(codes, dtype=torch.int32, device=device)
        self._tokens = 0

    def see(self, ids: Iterable[Int[Tensor, "..."]]) -> None:
        """Set the flags of the codes of one step's micro-batches."""
        for part in ids:
            self._flags.index_fill_(0, part.flatten().long(), 1)
            self._tokens += part.numel()

    def take(self) -> CodeUse:
        """Return the codes used by the tokens of all processes since the last call; all processes call it."""
        if process_count() > 1:
            dist.all_reduce(self._flags, dist.ReduceOp.MAX)
        use = CodeUse(int(self._flags.sum()), self._flags.numel(), self._tokens * process_count())
        self._flags.zero_()
        self._tokens = 0
        return use
