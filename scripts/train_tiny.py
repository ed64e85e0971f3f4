"""Train the tokenizer that comes along with voken, `Tokenizer.load("tiny")`, and write it as package data.

A network of minutes starts here from what k-means knows, in place of random weights: its convolutions first compute
the principal components of 4x4 patches, the codebook holds their k-means centres, the decoder turns a centre back into
its patch, and every residual block adds nothing. So the start is a patch quantizer in the form of Open-MAGVIT2's
network; training then lets encoder, codes and decoder see what surrounds a patch. Only the train parts of the
photographs bundled with scikit-image are used. The work directory keeps the newest state, so that the command can be
stopped at any time and goes on where it was.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny.start import batches, start, training_images
from torch import Tensor

from voken_common.atomic_write import replacing
from voken_common.checkpoints.conversion.safetensors_file import write_safetensors
from voken_common.checkpoints.steps import Meta
from voken_common.config.loading import load_config
from voken_common.metrics import psnr
from voken_common.quickstart.comparison import compare, held_out_crops, photograph_names, table
from voken_common.visual import reconstruction_grid, save_png
from voken_torch.models.autoencoder import Autoencoder
from voken_torch.quantizers.configured import encode_indices, lookup, quantize


class Training:
    """Weights, their averages, moments and position; kept in one file.

    The loss is the mean over images of the logarithm of the squared error, which is PSNR but for a factor, and the
    quantizer's term.

    Args:
        config: `configs/tiny.yaml`.
        workdir: folder of the state.
    """

    QUANT_WEIGHT = 100.0

    def __init__(self, config: Any, workdir: Path):
        self.config, self.file, self.images = config, workdir / "state.pt", training_images()
        self.model = start(config, self.images) if not self.file.exists() else self._restored()
        self.parameters = list(self.model.parameters())
        optimizer = config.optimizer
        self.adam = torch.optim.Adam(self.parameters, lr=optimizer.learning_rate, betas=optimizer.betas)
        self.averages, self.step, self.seconds = [p.detach().clone() for p in self.parameters], 0, 0.0
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            self.adam.load_state_dict(state["adam"])
            self.averages, self.step, self.seconds = state["averages"], state["step"], state["seconds"]

    def _restored(self) -> Autoencoder:
        model = Autoencoder(self.config.model, self.config.quantizer)
        model.load_state_dict(torch.load(self.file, weights_only=True)["model"])
        return model

    def save(self) -> None:
        """Replace the file by one of this step."""
        state = {"model": self.model.state_dict(), "adam": self.adam.state_dict(), "averages": self.averages}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        new = self.file.with_suffix(".new")
        torch.save(state | {"step": self.step, "seconds": self.seconds}, new)
        new.replace(self.file)

    def run(self, steps: int) -> None:
        """Up to so many steps in all; the learning rate falls along a cosine. Saves and reports every 100."""
        optimizer, began = self.config.optimizer, time.process_time()
        stream = batches(self.images, self.config.training.batch_size, self.config.data.image_size, 1 + self.step)
        while self.step < steps:
            warm = min(1.0, (self.step + 1) / (optimizer.schedule.warmup_steps or 1))
            floor = optimizer.schedule.end_factor
            cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * self.step / steps))
            for group in self.adam.param_groups:
                group["lr"] = optimizer.learning_rate * warm * cosine
            self._update(next(stream))
            if self.step % 100 == 0 or self.step == steps:
                now = time.process_time()
                self.seconds, began = self.seconds + now - began, now
                self.save()
                value = psnr(held_out_crops(), self.reconstruct(held_out_crops()))
                print(
                    f"step {self.step}  {self.seconds:.0f} s  held out {value.mean():.2f} dB {value.round(1)}",
                    flush=True,
                )

    def _update(self, images: Tensor) -> None:
        out = quantize(self.config.quantizer, self.model.encode(images), self.model.codebook)
        squares = (self.model.decode(out.codes) - images).square().mean(dim=(1, 2, 3))
        loss = torch.log(squares + 1e-4).mean() + self.QUANT_WEIGHT * out.terms["quant_loss"]
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.gradient_clip or math.inf)
        self.adam.step()
        self.step += 1
        decay = min(self.config.optimizer.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)

    def averaged(self) -> Autoencoder:
        """A copy with the averages."""
        model = Autoencoder(self.config.model, self.config.quantizer)
        model.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            for parameter, average in zip(model.parameters(), self.averages, strict=True):
                parameter.copy_(average)
        return model

    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """Through the ids, with the averages."""
        model, quantizer = self.averaged(), self.config.quantizer
        with torch.no_grad():
            ids = encode_indices(quantizer, model.encode(torch.tensor(images).movedim(-1, 1)), model.codebook)
            return model.decode(lookup(quantizer, ids, model.codebook)).clamp(-1, 1).movedim(1, -1).numpy()


def main() -> None:
    """Train, and export where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/tiny.yaml")
    parser.add_argument("--workdir", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--steps", type=int, help="default: training.steps of the configuration")
    parser.add_argument("--export", type=Path, help=".safetensors file for the averages; a picture goes beside it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    training = Training(load_config(options.config), options.workdir)
    training.run(options.steps if options.steps is not None else training.config.training.steps)
    originals = held_out_crops()
    again = training.reconstruct(originals)
    quantizer, factor = training.config.quantizer, training.config.model.downsampling
    rows = compare("tiny", originals, again, factor, quantizer.codebook_size)
    print(table(rows, photograph_names()))
    if options.export is not None:
        arrays = {name: tensor.numpy() for name, tensor in training.averaged().state_dict().items()}
        meta = Meta(training.config, training.step, {"psnr": float(rows[0].psnr.mean())})
        with replacing(options.export) as file:
            write_safetensors(file, arrays, meta, "ema")
        drawn = reconstruction_grid(originals, again, 4, photograph_names())
        save_png(options.export.with_suffix(".png"), drawn)


if __name__ == "__main__":
    main()
