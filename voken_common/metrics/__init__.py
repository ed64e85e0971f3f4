"""Metrics in NumPy and SciPy, the same for both frameworks.

Accumulators share one shape: `update` takes a batch, `merge` takes another accumulator, so that an evaluation of 50 000
images holds statistics, never features, and hosts combine what they saw.
"""

from voken_common.metrics.average import Average
from voken_common.metrics.codebook import CodebookCounter, codebook_perplexity, codebook_usage
from voken_common.metrics.frechet import (
    Gaussian,
    GaussianStatistics,
    Moments,
    frechet_distance,
    frechet_distance_of_features,
)
from voken_common.metrics.image import HIGHEST_PSNR, bounded_psnr, psnr, ssim
from voken_common.metrics.inception_score import InceptionScore
from voken_common.metrics.precision_recall import PrecisionRecall, precision_recall

__all__ = [
    "HIGHEST_PSNR",
    "Average",
    "CodebookCounter",
    "Gaussian",
    "GaussianStatistics",
    "InceptionScore",
    "Moments",
    "PrecisionRecall",
    "bounded_psnr",
    "codebook_perplexity",
    "codebook_usage",
    "frechet_distance",
    "frechet_distance_of_features",
    "precision_recall",
    "psnr",
    "ssim",
]
