"""Bad input of flash-attn's functions: one error that names the argument."""

from __future__ import annotations

import pytest
import torch

import llama_fast
from tests.integrations.flash_attn_formula import draw, offsets


def dense_call(**changes):
    arguments = {"q": draw(2, 5, 4, 8), "k": draw(2, 6, 2, 8), "v": draw(2, 6, 2, 8)} | changes
    return llama_fast.flash_attn_func(**arguments)


def varlen_call(**changes):
    arguments = {
        "q": draw(5, 4, 8), "k": draw(6, 2, 8), "v": draw(6, 2, 8),
        "cu_seqlens_q": offsets((2, 3)), "cu_seqlens_k": offsets((2, 4)),
        "max_seqlen_q": 3, "max_seqlen_k": 4,
    }  # fmt: skip
    return llama_fast.flash_attn_varlen_func(**(arguments | changes))


def paged_call(**changes):
    pages = {
        "k": draw(4, 3, 2, 8),
        "v": draw(4, 3, 2, 8),
        "block_table": torch.tensor([[0, 1]] * 2),
    }
    return varlen_call(**(pages | changes))


@pytest.mark.parametrize(
    "call, changes, error, message",
    [
        (dense_call, {"q": draw(5, 4, 8)}, ValueError, r"q: expected shape \(B,S,H,D\)"),
        (dense_call, {"q": [1.0]}, TypeError, "q: expected a tensor"),
        (dense_call, {"q": draw(3, 5, 4, 8)}, ValueError, "k: expected the batch size of q, 3"),
        (dense_call, {"q": draw(2, 5, 3, 8)}, ValueError, "k: expected a number of heads"),
        (dense_call, {"q": draw(2, 5, 4, 6)}, ValueError, "k: expected the head size of q, 6"),
        (dense_call, {"v": draw(2, 5, 2, 8)}, ValueError, "v: expected the shape of k"),
        (dense_call, {"v": draw(2, 6, 2, 8).float()}, TypeError, "v: expected the dtype of q"),
        (dense_call, {"dropout_p": 1.5}, ValueError, "dropout_p: expected a probability"),
        (dense_call, {"softmax_scale": "1"}, TypeError, "softmax_scale: expected a finite number"),
        (dense_call, {"softmax_scale": torch.inf}, ValueError, "softmax_scale: expected a finite"),
        (dense_call, {"window_size": 3}, TypeError, "window_size: expected a pair of ints"),
        (dense_call, {"window_size": (1.0, 2)}, TypeError, "window_size: expected a pair of ints"),
        (dense_call, {"softcap": None}, TypeError, "softcap: expected a finite number"),
        (dense_call, {"alibi_slopes": draw(3)}, ValueError, r"alibi_slopes: expected shape \(H,\)"),
        (varlen_call, {"q": draw(1, 5, 4, 8)}, ValueError, r"q: expected shape \(N,H,D\)"),
        (varlen_call, {"cu_seqlens_q": [0, 2]}, TypeError, "cu_seqlens_q: expected a tensor"),
        (varlen_call, {"cu_seqlens_q": offsets((2, 4))}, ValueError, "cu_seqlens_q: expected off"),
        (varlen_call, {"cu_seqlens_k": offsets((7, -1))}, ValueError, "cu_seqlens_k: expected off"),
        (varlen_call, {"cu_seqlens_k": offsets((2, 4, 0))}, ValueError, "cu_seqlens_k: expected"),
        (varlen_call, {"max_seqlen_q": 2}, ValueError, "max_seqlen_q: expected at least the"),
        (varlen_call, {"max_seqlen_k": None}, ValueError, "max_seqlen_k: expected an int"),
        (paged_call, {"k": draw(6, 2, 8)}, ValueError, r"k: expected shape \(P,page,K,D\)"),
        (paged_call, {"block_table": torch.ones(2)}, TypeError, "block_table: expected int32"),
        (paged_call, {"block_table": torch.ones(2).int()}, ValueError, "block_table: expected sha"),
        (paged_call, {"block_table": torch.tensor([[0, 1]])}, ValueError, "block_table: expected"),
        (paged_call, {"block_table": torch.tensor([[0], [1]])}, ValueError, "block_table: expected"
         " at least 2 pages"),
        (paged_call, {"block_table": torch.tensor([[0, 9], [1, 9]])}, ValueError, "block_table: "
         r"expected pages in \[0, 4\), got 9 at position \(1, 1\)"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)
