"""Configuration of the quantizers: one section each, and how its terms are weighted into the quantizer's loss.

`term_weights` names every term that counts, by the name under which the quantizer's row gives it (`configured` in
`voken_jax.quantizers` and `voken_torch.quantizers`); `logged_sum` names the weighted sum in the log, None: not logged.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from voken_common.config.schema.base import Section
from voken_common.config.schema.bounds import Channels, Codes, Layers, PositiveInt

Temperature = Annotated[float, Field(ge=1e-6)]
"""Logits are divided by it in float32, which less would overflow."""


class LFQConfig(Section):
    """Lookup-free quantization (reference terms: aux loss and commitment)."""

    logged_sum: ClassVar[str | None] = None
    kind: Literal["lfq"] = "lfq"
    """Kind of this section."""
    codebook_size: Codes
    """Number of codes."""
    code_dim: Channels
    """Length of a code; for LFQ its bits."""
    temperature: Temperature = 0.01
    """Temperature of the softmax in the entropy terms."""
    sample_entropy_weight: NonNegativeFloat = 1.0
    """Weight of the mean entropy of the single tokens, which is made small."""
    batch_entropy_weight: NonNegativeFloat = 1.0
    """Weight of the entropy of the average token, which is made large."""
    entropy_weight: NonNegativeFloat = 0.1
    """Weight of the entropy term; multiplied by 1 + enlarge_ratio * max(0, 1 - step / enlarge_steps)."""
    enlarge_ratio: NonNegativeFloat = 3.0
    """Additional factor on the entropy weight at step 0; see `enlarge_steps`."""
    enlarge_steps: PositiveInt = 2000
    """Steps over which the additional factor falls to 0."""
    commitment_weight: NonNegativeFloat = 0.25
    """Weight of the squared distance between latent and code."""
    bit_order: Literal["lsb_first", "msb_first"] = "lsb_first"
    """Worth of the first channel in an id: 1, or 2^(code_dim - 1) as in the models of June 2024; sub-tokens likewise,
    each by itself. The first sub-token is of the first channels either way."""
    token_bits: tuple[Layers, Layers] | None = None
    """Token factorization: bits of the first and of the second sub-token, for the generators."""
    memory_budget_mib: PositiveInt = 64
    """Largest temporary of the entropy, in MiB."""

    def term_weights(self, step: Any) -> dict[str, Any]:
        """Weight the terms of the quantizer's loss at a step, a number or an array of one."""
        remaining = 1.0 - step / self.enlarge_steps
        # Times a comparison is the larger of it and 0, for numbers and for arrays of any library.
        enlarged = self.entropy_weight * (1.0 + self.enlarge_ratio * (remaining * (remaining > 0)))
        return {"entropy_loss": enlarged, "commitment_loss": self.commitment_weight}

    @model_validator(mode="after")
    def _check(self) -> LFQConfig:
        if self.code_dim > 30 or self.codebook_size != 2**self.code_dim:
            fitting = self.codebook_size.bit_length() - 1
            other = f", or code_dim to {fitting}" if 2**fitting == self.codebook_size and 1 <= fitting <= 30 else ""
            raise ValueError(
                f"codebook_size {self.codebook_size} is not 2^code_dim with code_dim {self.code_dim} (at most 30): "
                "LFQ has one code for every sign pattern; set quantizer.codebook_size to "
                f"{2 ** min(self.code_dim, 30)}{other}"
            )
        if self.token_bits is not None and sum(self.token_bits) != self.code_dim:
            raise ValueError(f"token_bits {self.token_bits} must add up to code_dim {self.code_dim}")
        return self


class IBQConfig(Section):
    """Index backpropagation quantization over a learned codebook."""

    logged_sum: ClassVar[str | None] = "codebook_loss"
    kind: Literal["ibq"] = "ibq"
    """Kind of this section."""
    codebook_size: Annotated[int, Field(gt=1)]
    """Number of codes."""
    code_dim: Channels
    """Length of a code; for LFQ its bits."""
    beta: NonNegativeFloat = 0.25
    """Weight of the commitment term inside the quantization loss."""
    use_entropy: bool = True
    """Add the entropy terms to the loss."""
    temperature: Temperature = 0.01
    """Temperature of the entropy terms only; the straight-through softmax is at 1."""
    sample_entropy_weight: NonNegativeFloat = 1.0
    """Weight of the mean entropy of the single tokens, which is made small."""
    batch_entropy_weight: NonNegativeFloat = 1.0
    """Weight of the entropy of the average token, which is made large."""
    quantizer_weight: NonNegativeFloat = 1.0
    """Weight of the quantization loss; this is `codebook_weight` of the reference when use_entropy is false."""
    entropy_weight: NonNegativeFloat = 0.05
    """Weight of the entropy loss in the total."""
    shard_codes: bool = False
    """Split the codebook over the mesh's model axis."""
    memory_budget_mib: PositiveInt = 256
    """Largest block of logits, in MiB."""

    def term_weights(self, step: Any) -> dict[str, Any]:
        """Weight the terms of the quantizer's loss; the step does not matter."""
        weights = {"quant_loss": self.quantizer_weight}
        return weights | {"entropy_loss": self.entropy_weight} if self.use_entropy else weights


class VQConfig(Section):
    """Nearest-neighbour vector quantization, the VQGAN baseline."""

    logged_sum: ClassVar[str | None] = "codebook_loss"
    kind: Literal["vq"] = "vq"
    """Kind of this section."""
    codebook_size: Annotated[int, Field(gt=1)]
    """Number of codes."""
    code_dim: Channels
    """Length of a code; for LFQ its bits."""
    beta: NonNegativeFloat = 0.25
    """Weight of the commitment term inside the quantization loss."""
    legacy: bool = True
    """True puts beta on the codebook term, as the original VQGAN did; false puts it on the commitment term."""
    l2_normalize: bool = False
    """Normalise latents and codes to length 1 for the search of the nearest code only."""
    quantizer_weight: NonNegativeFloat = 1.0
    """Weight of the quantization loss."""
    memory_budget_mib: PositiveInt = 256
    """Largest block of distances, in MiB."""

    def term_weights(self, step: Any) -> dict[str, Any]:
        """Weight the one term of the quantizer's loss; the step does not matter."""
        return {"quant_loss": self.quantizer_weight}


QuantizerConfig = Annotated[LFQConfig | IBQConfig | VQConfig, Field(discriminator="kind")]


def quantizer_loss(config: QuantizerConfig, terms: dict[str, Any], step: Any) -> tuple[Any, dict[str, Any]]:
    """Weight and sum a quantizer's terms, arrays of any library.

    Args:
        config: of the quantizer.
        terms: unweighted, by name.
        step: number of the step, or an array of one.

    Returns:
        The loss, and what to log of it.
    """
    first, *others = (weight * terms[name] for name, weight in config.term_weights(step).items())
    loss = first
    for term in others:
        loss = loss + term
    return loss, dict(terms) if config.logged_sum is None else {**terms, config.logged_sum: loss}
