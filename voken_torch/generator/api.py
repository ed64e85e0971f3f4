"""The public Generator: load a checkpoint, draw images of classes.

Shape legend: B samples, h w tokens along the sides, H W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from voken_common.api.sharing import Known, Shareable
from voken_common.api.summary import Machinery, summarize_generator
from voken_common.checkpoints.frozen_tokenizer import find_tokenizer
from voken_common.checkpoints.hub.sharing import Shared
from voken_common.checkpoints.steps import Step, Weights
from voken_common.checkpoints.weight_names import require_same_shapes
from voken_common.config.inference import Precision
from voken_common.config.schema.generator import GeneratorConfig, SamplingConfig
from voken_common.config.schema.sampling import Sampling
from voken_common.data.tokens.format import bit_order_of, fingerprint_of, join_ids
from voken_common.pixels import to_uint8
from voken_common.sampling.requests import (
    Samples,
    check_cache_dtype,
    check_labels,
    check_sampling,
    check_seeds,
    no_tokenizer,
    require_fitting,
    require_trained_with,
)
from voken_common.visual.grids import sample_grid
from voken_torch.checkpoints import load as loading
from voken_torch.device.runtime import Runtime
from voken_torch.generator.sampling import generate
from voken_torch.models.generator import build_generator
from voken_torch.tokenizer.api import Tokenizer


class Generator(Shareable, nn.Module):
    """A trained class-conditional generator, frozen, in evaluation mode; `.to(device)` moves it and its tokenizer.

    Args:
        config: the run it comes from; its `model`, `precision` and `sampling` are used.
        weights: by name. They are kept in the precision that is computed in, and moved to the device.
        tokenizer: what turns tokens into images; None: found through the configuration when it is needed.
        origin: the checkpoint, beside which the tokenizer is looked for.
        runtime: where to compute; the CPU by default.
        verify: whether to verify the checksums of a tokenizer that is found so.

    Raises:
        NameMismatch: the weights are not those of the network.
        CheckpointError: the tokenizer has not the codes that are generated.
        DeviceError: the device cannot compute in the configured precision.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        weights: dict[str, Tensor],
        tokenizer: Tokenizer | None = None,
        origin: str | Path = ".",
        runtime: Runtime | None = None,
        verify: bool = True,
    ):
        super().__init__()
        self.config, self.origin, self._runtime = config, str(origin), runtime or Runtime()
        precision = config.precision
        self._runtime.check_precision(precision.param_dtype, precision.compute_dtype)
        with torch.device("meta"):
            network = build_generator(config.model, kernels=self._runtime.kernels())
        require_same_shapes(weights, network.state_dict(), f"weights of {config.name}")
        # No autocast: it would convert every weight anew at every position.
        dtype = getattr(torch, precision.compute_dtype)
        placed = {name: weight.to(self._runtime.device, dtype) for name, weight in weights.items()}
        network.load_state_dict(placed, strict=True, assign=True)
        self.network = network.requires_grad_(False).eval()
        self._tokenizer, self._verify = tokenizer, verify
        self._precision: Precision = config.precision.compute_dtype
        self._tokenizer_source: str | Path | None = None
        if tokenizer is not None:
            require_fitting(config, tokenizer.config, tokenizer.config.name)
            require_trained_with(config, tokenizer.fingerprint, tokenizer.config.name)

    @classmethod
    def load(
        cls,
        source: str | Path,
        tokenizer: Tokenizer | str | Path | None = None,
        *,
        precision: Precision = "float32",
        weights: Weights | None = None,
        step: Step = "latest",
        config: str | Path | None = None,
        runtime: Runtime | None = None,
        verify: bool = True,
    ) -> Generator:
        """Read a checkpoint; what has to be downloaded or converted is, once.

        Args:
            source: a published model or a repository of the hub (`OWNER/NAME[@REVISION][:FILE]`), a Lightning .ckpt,
                a .pt or .safetensors file, a work directory, or a step in one.
            tokenizer: what turns tokens into images, or its source; None: the one that came with the generator, else
                the one that the configuration names, looked for beside the generator's work directory, then where the
                configuration says, else the published one that belongs to a published generator.
            precision: to compute in, whatever the model was trained in: float32, bfloat16, or float64.
            weights: `ema` (averages) or `raw`; None: averages if there are any.
            step: which step of a work directory: `latest`, `best` or a number.
            config: a YAML file or a published model, where a foreign file does not say what it is.
            runtime: where to compute; the CPU by default.
            verify: whether to verify the checksums of what is read, the tokenizer's too.

        Raises:
            CheckpointError: there is no such checkpoint, it is damaged, or it is not one of a generator.
            NameMismatch: the weights are not those of the network.
            DeviceError: the device cannot compute in that precision.
        """
        found = loading.load(source, step=step, weights=weights, config=config, verify=verify, precision=precision)
        if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
            tokenizer = Tokenizer.load(tokenizer, precision=precision, runtime=runtime, verify=verify)
        generator = cls(found.meta.generator, found.weights, tokenizer, found.path, runtime, verify)
        generator._precision, generator._tokenizer_source = precision, found.resolved.tokenizer
        generator.known = Known(found.kind, found.meta.metrics, found.resolved.model)
        return generator

    from_pretrained = load

    @property
    def device(self) -> torch.device:
        """The device that holds the weights; `.to` changes it."""
        return next(self.network.parameters()).device

    @property
    def runtime(self) -> Runtime:
        """The device and how it computes."""
        return dataclasses.replace(self._runtime, device=self.device)

    def train(self, mode: bool = True) -> Generator:
        """Stay in evaluation mode, also inside a model that is trained: the generator is frozen."""
        super().train(False)
        return self

    def __repr__(self) -> str:
        weights = list(self.network.parameters())
        dtype = str(weights[0].dtype).removeprefix("torch.")
        count = sum(weight.numel() for weight in weights)
        return summarize_generator(self.config, Machinery(count, dtype, dtype, f"{self.device} (PyTorch)", self.origin))

    def _to_share(self, picture: bool) -> tuple[Shared, Shared]:
        arrays = {name: weight.cpu().float().numpy() for name, weight in self.network.state_dict().items()}
        shown = None
        if picture:
            labels = list(range(min(4, self.classes)))
            shown = sample_grid(
                list(to_uint8(self.sample(labels).images.movedim(1, -1).cpu().numpy())),
                [f"class {label}" for label in labels],
            )
        known, (tokenizer, _) = self.known, self.tokenizer._to_share(False)
        return Shared(self.config, arrays, known.weights, known.metrics, known.model, shown), tokenizer

    def fingerprint(self) -> str:
        """A hash of network and weights, in the precision in which they are computed with."""
        weights = {name: weight.cpu() for name, weight in self.network.state_dict().items()}
        # NumPy has no bfloat16; float32 holds the same values.
        arrays = {k: (w.float() if w.dtype is torch.bfloat16 else w).numpy() for k, w in weights.items()}
        return fingerprint_of(self.config.model.model_dump(mode="json"), arrays)

    @property
    def classes(self) -> int:
        """Labels are in [0, classes)."""
        return self.config.model.classes

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that turns tokens into images.

        Raises:
            CheckpointError: none is named, it is not there, or it has other codes than are generated.
        """
        if self._tokenizer is None:
            place = self._tokenizer_source
            if place is None and self.config.tokenizer is None:
                raise no_tokenizer(self.config)
            place = place or find_tokenizer(str(self.config.tokenizer), self.origin)
            tokenizer = Tokenizer.load(place, precision=self._precision, runtime=self.runtime, verify=self._verify)
            require_fitting(self.config, tokenizer.config, str(place))
            require_trained_with(self.config, tokenizer.fingerprint, str(place))
            self._tokenizer = tokenizer
        return self._tokenizer

    def sample(
        self,
        labels: ArrayLike | Tensor | str | Sequence[int | str],
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        sampling: Sampling | SamplingConfig | None = None,
        images: bool = True,
        cache_dtype: torch.dtype | None = None,
    ) -> Samples:
        """One sample per label; see `voken_common.sampling.requests.Samples`.

        Args:
            labels: (B,) a class per sample, in any mixture: numbers, or names where `config.class_names` has them.
            seed: decides all samples together.
            seeds: (B,) instead, one per sample: the same seed and class give the same sample whatever the batch, up to
                the rounding of sums.
            sampling: guidance, temperature and filters; None: those of the configuration.
            images: False leaves out the images, and needs no tokenizer.
            cache_dtype: of keys and values, such as bfloat16 to save memory; None: that of the computation.

        Raises:
            ValueError: labels, seeds or settings that cannot be.
            CheckpointError: images without a tokenizer that makes them.
        """
        names = self.config.class_names
        classes = check_labels(labels.cpu().numpy() if isinstance(labels, Tensor) else labels, self.classes, names)
        numbers = check_seeds(seed, seeds, len(classes))
        settings = check_sampling(sampling, self.config)
        if cache_dtype is not None:
            check_cache_dtype(cache_dtype)
        tokenizer = self.tokenizer if images else None
        order = "lsb_first" if tokenizer is None else bit_order_of(tokenizer.config)
        placed = torch.from_numpy(classes).to(self.runtime.device, torch.int64)
        tokens = generate(self.network, placed, numbers, settings, cache_dtype, graphs=True)
        model = self.config.model
        ids = torch.from_numpy(join_ids(tokens.cpu().numpy(), model.vocabularies, order)).reshape(
            -1, model.grid, model.grid
        )
        return Samples(ids, None if tokenizer is None else tokenizer.decode(ids))
