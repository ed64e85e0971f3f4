"""Pictures for people: grids of reconstructions and samples, differences, codebook usage. Drawn with Pillow alone.

Images are uint8, or float in [-1, 1], channels last; pictures are uint8 (H, W, 3).
"""

from voken_common.visual.clips import clip_pairs, clip_strips
from voken_common.visual.difference import difference_map
from voken_common.visual.files import gif, save_png
from voken_common.visual.grids import class_wall, grid, reconstruction_grid, sample_grid, side_by_side
from voken_common.visual.plots import codebook_usage_plot

__all__ = [
    "class_wall",
    "clip_pairs",
    "clip_strips",
    "codebook_usage_plot",
    "difference_map",
    "gif",
    "grid",
    "reconstruction_grid",
    "sample_grid",
    "save_png",
    "side_by_side",
]
