"""Fused kernels, computed plainly but with the calling conventions of torch_npu."""

import torch


def npu_fusion_attention(query, key, value, head_num, input_layout, *, atten_mask=None, scale=1.0, keep_prob=1.0):
    """Attention of (B, S, H) tensors with H = head_num x D; a mask is true where nothing is to be seen.

    Returns the mixed values first, then what the backward pass of the real kernel keeps.
    """
    if input_layout != "BSH" or keep_prob != 1.0:
        raise NotImplementedError(f"layout {input_layout}, keep_prob {keep_prob}")
    heads = [x.unflatten(-1, (head_num, -1)).transpose(1, 2) for x in (query, key, value)]
    logits = (heads[0] @ heads[1].transpose(-1, -2)).float() * scale
    if atten_mask is not None:
        logits = logits.masked_fill(atten_mask.bool(), -torch.inf)
    mixed = logits.softmax(-1).to(value.dtype) @ heads[2]
    return mixed.transpose(1, 2).flatten(2), None, None, None, 0, 0, 0
