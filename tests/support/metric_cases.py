"""Inputs of the golden cases of evaluation, and the checks that both frameworks share."""

import numpy as np

from tests.support.golden_cases import assert_numbers, channels_last, uniform
from voken_common import metrics


def check_shapes(network, golden):
    """The written-down network has exactly the reference's tensors, batch counters aside."""
    expected = {key: tuple(shape) for key, shape in golden.items() if not key.endswith("num_batches_tracked")}
    assert network.shapes() == expected


def sample_images(case):
    """The uint8 samples (B, H, W, 3)."""
    values = 127.5 + 70 * uniform(case.config["image_shape"], case.seed, "samples")
    return channels_last(np.clip(values, 0, 255).astype(np.uint8))


def small_image(case):
    """One small image as floats in 0..255 (1, H, W, 3), and the side to resize it to."""
    values = 127.5 + 70 * uniform((1, 3, 7, 9), case.seed, "small")
    (height, width) = case.config["resize"]["size"]
    assert height == width
    return channels_last(np.clip(values, 0, 255).astype(np.uint8)).astype(np.float64), height


def check_feature_metrics(case):
    """Frechet distance, Inception Score, precision and recall of the case's features."""
    config = case.config
    recipe = {"uniform": uniform, "seed": case.seed}
    ref, gen, logits = (
        eval(config["feature_recipe"][name], {"__builtins__": {}}, recipe) for name in ("ref", "gen", "logits")
    )
    assert (len(ref), len(gen)) == (config["n_ref"], config["n_gen"])
    score = metrics.InceptionScore(logits.shape[1], split_size=config["split"])
    for start in range(0, len(logits), 7):
        score.update_logits(logits[start : start + 7])
    manifold = metrics.precision_recall(ref, gen, neighbours=config["k"])
    found = {
        "frechet": metrics.frechet_distance_of_features(ref, gen),
        "inception_score": score.result()[0],
        "precision": manifold.precision,
        "recall": manifold.recall,
    }
    assert_numbers(found, {name: config[name] for name in found}, case.name)
