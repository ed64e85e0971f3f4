"""Load published models by name in a process of its own; arguments: FRAMEWORK CONFIGS OUT NAME...

Writes fingerprints, and of image tokenizers the ids and images of `tiny_published.images`, as .npz. In the process for
PyTorch nothing of JAX can be imported.
"""

import sys

FRAMEWORK, CONFIGS, OUTPUT, *NAMES = sys.argv[1:]
if FRAMEWORK == "torch":
    sys.modules |= dict.fromkeys(("jax", "jaxlib", "flax", "orbax", "optax"))

import numpy as np  # noqa: E402

from tests.support import tiny_published  # noqa: E402

tiny_published.install(CONFIGS)


def of_tokenizer(tokenizer):
    found = {"fingerprint": fingerprint_of(tokenizer)}
    if tokenizer.config.model.network != "magvit2_video":
        images = tiny_published.images(tokenizer.config)
        if FRAMEWORK == "torch":
            import torch

            found["ids"] = tokenizer.encode(torch.from_numpy(images).movedim(-1, 1)).numpy()
            found["images"] = tokenizer.decode(torch.from_numpy(found["ids"])).movedim(1, -1).numpy()
        else:
            found["ids"] = np.asarray(tokenizer.encode(images))
            found["images"] = np.asarray(tokenizer.decode(found["ids"]))
    return found


def fingerprint_of(model):
    value = model.fingerprint
    return value() if callable(value) else value


def of_generator(generator):
    return {"fingerprint": fingerprint_of(generator), "tokenizer": fingerprint_of(generator.tokenizer)}


def main():
    if FRAMEWORK == "torch":
        from voken_torch.generator.api import Generator
        from voken_torch.tokenizer.api import Tokenizer
    else:
        from voken_jax.generator.api import Generator
        from voken_jax.tokenizer.api import Tokenizer
    results = {}
    for name in NAMES:
        kind = Generator if "generator" in name or "-AR-" in name else Tokenizer
        found = (of_generator if kind is Generator else of_tokenizer)(kind.load(name))
        results |= {f"{name}|{key}": value for key, value in found.items()}
    np.savez(OUTPUT, **results)


main()
