"""Attention masks: which keys each query may see. Masks are causal, also within documents and over a cache.

S is the number of queries, L the number of keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Where the documents of a packed sequence lie."""

    cu_seqlens: Tensor  # int32 [n + 1]; document k is cu_seqlens[k] : cu_seqlens[k + 1]
    max_seqlen: int  # the length of the longest document, known on the host
    # Lengths of the documents that are not empty. () on CUDA without windows, where nothing loops over documents.
    lengths: tuple[int, ...]
    # For each of `lengths`, the mask [1, 1, length, length] of a document with a window over its answer. None if the
    # document is causal alone. () without windows.
    masks: tuple[Tensor | None, ...] = ()

    def mask(self, S: int) -> Tensor:
        """Return the mask over the whole sequence, bool [S, S], for attention that cannot run document by document."""
        assert not self.masks, "documents with windows are run one by one"
        borders = self.cu_seqlens
        document_S = torch.bucketize(torch.arange(S, device=borders.device), borders[1:], right=True)
        return (document_S[:, None] == document_S[None, :]).tril()


@dataclass(frozen=True, kw_only=True)
class AnswerWindow:
    """What Unlimited-OCR's attention sees of a document: the prompt, and the last `size` tokens of the answer.

    An answer that fits into the window is seen whole, so its document needs no mask.
    """

    size: int  # tokens, the query's own included
    prompt_lengths: tuple[int, ...]  # tokens before the answer of each document; a document without answer is a prompt

    def mask(self, number: int, length: int, device: torch.device) -> Tensor | None:
        """Return the mask of document `number`, bool [1, 1, length, length], or None if it is causal alone."""
        prompt_length = self.prompt_lengths[number] if number < len(self.prompt_lengths) else length
        if length - prompt_length <= self.size:
            return None
        place = torch.arange(length, device=device)
        is_near = place[None, :] > place[:, None] - self.size
        return (is_near | (place < prompt_length)).tril()[None, None]


@dataclass(frozen=True, kw_only=True)
class AttentionMask:
    """Which keys each query may see, as a tensor or as one of the cases that need no tensor."""

    tensor: Tensor | None  # bool [B, 1, S, L], True where visible
    is_causal: bool  # query i sees keys 0..i; only with S == L and no tensor
    documents: Documents | None = None  # query i sees keys 0..i of its own document; one row, S == L
    prefix_length: int | None = None  # if set, query i sees keys 0..prefix_length + i in every row

    @classmethod
    def of_rows(cls, attention_mask_BS: Tensor | None) -> AttentionMask:
        """Return a causal mask for each row. `attention_mask_BS` is needed only if padding comes before tokens."""
        if attention_mask_BS is None:
            return cls(tensor=None, is_causal=True)
        S = attention_mask_BS.shape[1]
        causal = torch.ones(S, S, dtype=torch.bool, device=attention_mask_BS.device).tril()
        # A padding query sees itself: a softmax over no keys would be NaN, and NaN spreads.
        itself = torch.eye(S, dtype=torch.bool, device=causal.device)
        return cls(tensor=(causal & attention_mask_BS[:, None, None, :]) | itself, is_causal=False)

    @classmethod
    def of_documents(cls, cu_seqlens: Tensor, max_seqlen: int, window: AnswerWindow | None = None) -> AttentionMask:
        """Return a causal mask within each document of one packed row. The documents must cover the whole row.

        With `window` every document has a prompt and an answer; only padding, which comes last, may have neither.
        """
        lengths: tuple[int, ...] = ()
        masks: tuple[Tensor | None, ...] = ()
        if window is not None or not cu_seqlens.is_cuda:
            numbered = [(number, n) for number, n in enumerate(cu_seqlens.diff().tolist()) if n]
            lengths = tuple(n for _, n in numbered)
            if window is not None:
                assert len(window.prompt_lengths) >= len(cu_seqlens) - 2, "only padding has no prompt"
                masks = tuple(window.mask(number, n, cu_seqlens.device) for number, n in numbered)
        documents = Documents(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, lengths=lengths, masks=masks)
        return cls(tensor=None, is_causal=False, documents=documents)

    @classmethod
    def of_cache(cls, lengths: list[int], num_new: int, device: torch.device) -> AttentionMask:
        """Return the mask of `num_new` new queries over rows that already hold `lengths` positions."""
        prefix_length = lengths[0] if len(set(lengths)) == 1 else None
        if prefix_length == 0:
            return cls(tensor=None, is_causal=True, prefix_length=0)
        if prefix_length is not None and num_new == 1:
            return cls(tensor=None, is_causal=False, prefix_length=prefix_length)
        last_B = torch.tensor(lengths, device=device)
        key_L = torch.arange(max(lengths) + num_new, device=device)
        query_S = torch.arange(num_new, device=device)
        visible = key_L <= (last_B[:, None, None] + query_S[None, :, None])
        return cls(tensor=visible.unsqueeze(1), is_causal=False, prefix_length=prefix_length)

    def of_last(self, S: int) -> AttentionMask:
        """Return the mask of the last of S queries alone. Packed documents are not supported."""
        assert self.documents is None, "packed documents have no mask of the last query alone"
        if self.prefix_length is not None:  # then it sees every key
            return AttentionMask(tensor=None, is_causal=False, prefix_length=self.prefix_length + S - 1)
        return AttentionMask(tensor=None if self.tensor is None else self.tensor[:, :, -1:], is_causal=False)

    def dense(self, S: int, L: int, device: torch.device) -> Tensor | None:
        """Return the mask as a tensor that broadcasts to [B, H, S, L], or None if every key is visible."""
        if self.documents is not None:
            return self.documents.mask(S)
        return torch.ones(S, L, dtype=torch.bool, device=device).tril() if self.is_causal else self.tensor
