"""Scaled dot-product attention, with everything the standard's operator can be asked for.

    Y = softmax(softcap(scale Q K') + bias) V

`bias` is 0 where a query sees a key and -inf where not: by the mask given, causality, a window
around the query's position, and the number of valid keys. A query that sees no key gives zeros.
Letters in shapes: B batch, H heads, Q queries, K keys, D head size.
"""
# ruff: noqa: PLR0913 - as many parameters as the operator has inputs and attributes

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from modelmill.executor.ops_shape import element_type


def Attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    n_outputs: int,
) -> Tensor | tuple[Tensor, ...]:
    rank = Q.dim()
    q_BHQD, k_BHKD = _heads(Q, q_num_heads), _heads(K, kv_num_heads)
    v_BHKD = _heads(V, kv_num_heads)
    offset: int | Tensor = 0  # position of the first query among the keys
    if past_key is not None and past_value is not None:
        k_BHKD, v_BHKD = torch.cat([past_key, k_BHKD], 2), torch.cat([past_value, v_BHKD], 2)
        offset = past_key.shape[2]
    elif nonpad_kv_seqlen is not None:
        offset = nonpad_kv_seqlen.reshape(-1, 1, 1, 1) - q_BHQD.shape[2]
    present = (k_BHKD, v_BHKD)
    groups = q_BHQD.shape[1] // k_BHKD.shape[1]
    if groups > 1:  # grouped queries: neighbouring query heads share a key head
        k_BHKD, v_BHKD = (t.repeat_interleave(groups, 1) for t in (k_BHKD, v_BHKD))
    scale = 1 / math.sqrt(q_BHQD.shape[3]) if scale is None else scale

    seen = _seen(
        q_BHQD, k_BHKD, offset, 0 if is_causal else None, left_window_size, right_window_size
    )
    if nonpad_kv_seqlen is not None:
        valid = torch.arange(k_BHKD.shape[2], device=Q.device) < nonpad_kv_seqlen.reshape(
            -1, 1, 1, 1
        )
        seen = valid if seen is None else seen & valid
    bias = _bias(attn_mask, seen, k_BHKD)
    if bias is None and not softcap and softmax_precision is None and n_outputs == 1:
        y = functional.scaled_dot_product_attention(q_BHQD, k_BHKD, v_BHKD, scale=scale)
        return _joined(y, rank)

    root = math.sqrt(scale)  # on both sides, so that 16-bit products do not overflow
    scores = (q_BHQD * root) @ (k_BHKD * root).transpose(2, 3)
    stages = [scores]
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    stages.append(scores)
    if bias is not None:
        scores = scores + bias
    stages.append(scores)
    weights = _softmax(scores, softmax_precision)
    stages.append(weights)
    return (_joined(weights @ v_BHKD, rank), *present, stages[qk_matmul_output_mode])[:n_outputs]


def _heads(x: Tensor, count: int | None) -> Tensor:
    """(B, sequence, H D) as (B, H, sequence, D); four dimensions stay as they are."""
    if x.dim() == 4 or count is None:
        return x
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def _joined(y_BHQD: Tensor, rank: int) -> Tensor:
    return y_BHQD if rank == 4 else y_BHQD.transpose(1, 2).flatten(2)


def _seen(
    q_BHQD: Tensor, k_BHKD: Tensor, offset: int | Tensor, ahead: int | None, left: int, right: int
) -> Tensor | None:
    """Which keys lie within reach of each query; None for all. `ahead`: most keys ahead, if any."""
    if ahead is None and left < 0 and right < 0:
        return None
    query = torch.arange(q_BHQD.shape[2], device=q_BHQD.device).unsqueeze(1) + offset
    key = torch.arange(k_BHKD.shape[2], device=q_BHQD.device)
    seen = torch.ones_like(key - query, dtype=torch.bool)
    if left >= 0:
        seen = seen & (key >= query - left)
    for limit in (right if right >= 0 else None, ahead):
        if limit is not None:
            seen = seen & (key <= query + limit)
    return seen


def _bias(mask: Tensor | None, seen: Tensor | None, k_BHKD: Tensor) -> Tensor | None:
    """What is added to the scores; None for nothing."""
    if mask is not None:
        missing = k_BHKD.shape[2] - mask.shape[-1]  # keys that the mask does not reach are not seen
        if mask.dtype == torch.bool:
            mask = functional.pad(mask, (0, missing), value=False)
            seen = mask if seen is None else seen & mask
            mask = None
        elif missing:
            mask = functional.pad(mask, (0, missing), value=float("-inf"))
    if seen is None:
        return mask
    zero = torch.zeros((), dtype=k_BHKD.dtype, device=k_BHKD.device)
    hidden = torch.where(seen, zero, float("-inf"))
    return hidden if mask is None else hidden + mask


def _softmax(scores: Tensor, precision: int | None) -> Tensor:
    kind = scores.dtype if precision is None else element_type(precision)
    weights = torch.softmax(scores.to(kind), -1).to(scores.dtype)
    blind = (scores == float("-inf")).all(-1, keepdim=True)
    return torch.where(blind, torch.zeros_like(weights), weights)
