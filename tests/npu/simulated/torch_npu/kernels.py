"""Fused kernels, computed plainly but with the calling conventions of torch_npu."""

import torch


def npu_fusion_attention(query, key, value, head_num, input_layout, *, atten_mask=None, scale=1.0, keep_prob=1.0):
    """Attention of (B, S, H) tensors with H = head_num x D, or of (B, N, S, D); a mask is true where nothing is seen.

    Returns the mixed values first, then what the backward pass of the real kernel keeps.
    """
    if input_layout not in ("BSH", "BNSD") or keep_prob != 1.0:
        raise NotImplementedError(f"layout {input_layout}, keep_prob {keep_prob}")
    heads = (query, key, value)
    if input_layout == "BSH":
        heads = [x.unflatten(-1, (head_num, -1)).transpose(1, 2) for x in heads]
    if heads[0].shape[1] != head_num:
        raise RuntimeError(f"head_num {head_num}, found {heads[0].shape[1]} heads")
    logits = (heads[0] @ heads[1].transpose(-1, -2)).float() * scale
    if atten_mask is not None:
        logits = logits.masked_fill(atten_mask.bool(), -torch.inf)
    mixed = logits.softmax(-1).to(value.dtype) @ heads[2]
    return mixed.transpose(1, 2).flatten(2) if input_layout == "BSH" else mixed, None, None, None, 0, 0, 0


def npu_rotary_mul(x, r1, r2, *, rotary_mode="half"):
    """x r1 + turned(x) r2, where interleave turns neighbours (a, b) to (-b, a); r1, r2 broadcast to x."""
    if rotary_mode != "interleave":
        raise NotImplementedError(f"rotary_mode {rotary_mode}")
    if r1.shape[-1] != x.shape[-1] or r1.dtype != x.dtype:
        raise RuntimeError(f"r1 is {tuple(r1.shape)} of {r1.dtype}, x {tuple(x.shape)} of {x.dtype}")
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * r1 + turned * r2


def npu_rms_norm(x, gamma, epsilon=1e-6):
    """Normalised and scaled values, and the reciprocal root mean square."""
    rstd = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)
    return (x.float() * rstd).to(x.dtype) * gamma, rstd


def npu_swiglu(x, dim=-1):
    """silu of the first half along `dim`, times the second half."""
    gate, up = x.chunk(2, dim)
    return torch.nn.functional.silu(gate) * up
