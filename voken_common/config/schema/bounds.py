"""Whole numbers of a configuration, each with the most that makes sense.

A configuration may come with somebody else's checkpoint. Networks are laid out by its numbers before a weight is looked
at, so a number that no machine could serve must be an error and not an endless loop.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

PositiveInt = Annotated[int, Field(gt=0, le=2**40)]
"""Steps, samples and other counts of what is gone through one by one."""
NonNegativeInt = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""The same from 0, and seeds."""
Side = Annotated[int, Field(gt=0, le=2**16)]
"""Pixels, frames or tokens along a side."""
Channels = Annotated[int, Field(gt=0, le=2**17)]
"""Channels, widths and groups of them."""
Factor = Annotated[int, Field(gt=0, le=2**10)]
"""What channels are multiplied by."""
Layers = Annotated[int, Field(gt=0, le=2**10)]
"""Layers, blocks, heads and stages of a network."""
Codes = Annotated[int, Field(gt=0, le=2**31 - 1)]
"""Entries of a codebook or vocabulary: ids are 32-bit integers."""
Workers = Annotated[int, Field(ge=0, le=2**10)]
"""Processes or threads of one machine."""
LONGEST_LADDER = 16
"""Levels of an autoencoder: each halves the side."""
