"""Token shards as a PyTorch data set, for training loops other than voken's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset


class TokenDataset(Dataset[dict[str, Any]]):
    """The samples of a finished folder of token shards, by random access.

    It may be handed to `torch.utils.data.DataLoader` with any number of workers. Voken's own training does not use it:
    its data order resumes exactly, which a DataLoader's does not.

    Args:
        path: the folder, as the encode command writes it.

    Raises:
        DataError: no shards there, unfinished, incomplete or of several tokenizers.
    """

    def __init__(self, path: str | Path):
        # Imported late: array_record is needed to read shards, not to import this package.
        from voken_common.data.tokens.shards import TokenShardSource

        self.source = TokenShardSource(path)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Tokens int64 (T, S), row-major, S sub-tokens; label as an int; key as text.

        Raises:
            IndexError: no such sample.
        """
        sample = self.source[index]
        return {"tokens": torch.from_numpy(sample["tokens"]).long(), "label": sample["label"], "key": sample["key"]}
