"""Transformer-XL: language models that remember the preceding segment (Dai et al., arXiv 1901.02860).

Parameters for the 267,735 words of WikiText-103: `transformer_xl_base` has 151,107,538, the paper's 151M.
`transformer_xl_large` has 285,170,506: the 285M of AC/DC's paper (arXiv 2106.12379), which trained NVIDIA's version of
it. The paper's own table says 257M, but the authors' published script has this configuration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acdc_cli.errors import ModelError
from acdc_cli.memory import Memory, Past
from acdc_cli.models.adaptive_softmax import AdaptiveEmbedding, AdaptiveSoftmax
from acdc_cli.models.units import Units, heads, neurons


class Attention(nn.Module):
    """Relative multi-head attention over the memory and the segment (section 3.3)."""

    def __init__(self, d_model: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key_value = nn.Linear(d_model, 2 * d_model, bias=False)
        self.positions = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        past: Tensor | None,
        distances: Tensor,
        hidden_keys: Tensor,
        content_bias: Tensor,
        position_bias: Tensor,
    ) -> Tensor:
        """x: (rows, length, width).  past: (rows, remembered, width).

        distances: (reach, width), encodings of the distances reach - 1 to 0; reach = remembered + length.
        The biases, the paper's u and v: (heads, 1, width of a head).
        """
        context = x if past is None else torch.cat([past, x], dim=1)
        query = self._by_head(self.query(x))
        key, value = (self._by_head(half) for half in self.key_value(context).chunk(2, dim=-1))
        position = self._by_head(self.positions(distances))
        content_scores = (query + content_bias) @ key.transpose(-1, -2)
        position_scores = shifted((query + position_bias) @ position.transpose(-1, -2))
        scores = (content_scores + position_scores) / math.sqrt(query.size(-1))
        weights = self.dropout(scores.masked_fill(hidden_keys, -math.inf).softmax(-1))
        attended: Tensor = self.output((weights @ value).transpose(1, 2).flatten(2))
        return attended

    def _by_head(self, x: Tensor) -> Tensor:
        """(..., length, width) -> (..., heads, length, width of a head)."""
        return x.view(*x.shape[:-1], self.heads, -1).transpose(-3, -2)


def shifted(scores: Tensor) -> Tensor:
    """Scores by distance become scores by key: row i of (rows, heads, length, reach) moves left by length - 1 - i.

    Column c holds the distance reach - 1 - c, and the key at column j is reach - length + i - j away. What moves in
    at the right belongs to keys in the future (appendix B).
    """
    rows, heads, length, reach = scores.shape
    # read with one more column, the flat values of each following row lie one further left
    flat = F.pad(scores, (1, 0)).flatten(2)
    return flat[..., length:].view(rows, heads, length, reach)


class FeedForward(nn.Module):
    def __init__(self, d_model: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(d_model, inner)
        self.second = nn.Linear(inner, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        transformed: Tensor = self.second(self.dropout(F.relu(self.first(x))))
        return transformed


class Layer(nn.Module):
    """Attention and feed-forward, each with dropout, residual connection and then layer norm."""

    def __init__(self, d_model: int, heads: int, inner: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.attention = Attention(d_model, heads, attention_dropout)
        self.attention_norm = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, inner, dropout)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        past: Tensor | None,
        distances: Tensor,
        hidden_keys: Tensor,
        content_bias: Tensor,
        position_bias: Tensor,
    ) -> Tensor:
        attended = self.attention(x, past, distances, hidden_keys, content_bias, position_bias)
        x = self.attention_norm(x + self.dropout(attended))
        transformed: Tensor = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return transformed


class TransformerXL(nn.Module):
    """Predicts the next token of each position, from the tokens before it and the memory of earlier batches."""

    takes_targets: bool
    """Whether `forward` uses targets: an adaptive softmax does, and in training needs them to be fast."""

    def __init__(
        self,
        num_classes: int,
        layers: int = 4,
        d_model: int = 128,
        heads: int = 4,
        inner: int = 512,
        memory: int = 64,
        eval_memory: int | None = None,
        clamp: int | None = None,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        tie_biases: bool = True,
        cutoffs: str | int = "",
        div: int = 1,
        init_std: float = 0.02,
    ) -> None:
        """num_classes: the size of the vocabulary, tokens numbered by falling frequency if there are cutoffs.

        inner: width of the feed-forward.  memory, eval_memory: tokens remembered in training and in evaluation, where
        the default is the same.  clamp: the largest distance with an encoding of its own.  tie_biases: all layers share
        the attention's biases u and v.  cutoffs: first tokens of the rarer clusters, such as "20000,40000".  div: each
        cluster is so many times narrower than the one before.
        Raises ModelError for options that do not fit together.
        """
        super().__init__()
        edges = _edges(cutoffs, num_classes)
        _check(layers, d_model, heads, inner, (memory, eval_memory or 0), len(edges), div)
        self.takes_targets = bool(edges)
        self.memory = Memory()
        self.clamp = clamp
        self._remembers = {True: memory, False: memory if eval_memory is None else eval_memory}
        self.embeddings = AdaptiveEmbedding(num_classes, d_model, edges, div)
        self.layers = nn.ModuleList(Layer(d_model, heads, inner, dropout, attention_dropout) for _ in range(layers))
        shape = (1 if tie_biases else layers, heads, 1, d_model // heads)
        self.content_bias = nn.Parameter(torch.empty(shape))
        self.position_bias = nn.Parameter(torch.empty(shape))
        self.dropout = nn.Dropout(dropout)
        self.softmax = AdaptiveSoftmax(num_classes, d_model, edges, div)
        initialise(self, init_std)

    def forward(self, tokens: Tensor, targets: Tensor | None = None, begins: Tensor | None = None) -> Tensor:
        """(rows, length) -> logits, or log-probabilities of an adaptive softmax, (rows, length, vocabulary).

        targets: (rows, length), -100 where none is wanted. An adaptive softmax then gives the log-probability of each
        (rows, length), 0 for -100. Others make no use of them.
        begins: (rows,), whether a row begins a text instead of continuing the row of the batch before; None: no row.
        """
        hidden = self._hidden(tokens, begins)
        if not self.takes_targets:
            return self.softmax.logits(hidden, self.embeddings)
        if targets is None:
            every: Tensor = self.softmax(hidden, self.embeddings)
            return every
        return self.softmax.of_targets(hidden.flatten(0, 1), self.embeddings, targets.flatten()).view_as(targets)

    def heads_and_neurons(self) -> Iterator[Units]:
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            attention, inner = layer.attention, layer.feed_forward.first.out_features
            # the second half of the rows are values, the first half keys
            yield heads(f"layers.{number}.attention", attention.heads, "key_value.weight", "output.weight", 1, 2)
            yield neurons(f"layers.{number}.feed_forward", inner, "first.weight", "second.weight")

    def _hidden(self, tokens: Tensor, begins: Tensor | None) -> Tensor:
        limit = self._remembers[self.training]
        if begins is None:
            begins = torch.zeros(tokens.size(0), dtype=torch.bool, device=tokens.device)
        past = self.memory.recall(begins, limit)
        hidden = self.dropout(self.embeddings(tokens))
        hidden_keys = _hidden_keys(tokens, past)
        reach = hidden_keys.size(-1)
        distances = self.dropout(encoded_distances(reach, self.clamp, self.content_bias, hidden.size(-1)))
        entering = []
        for number, layer in enumerate(self.layers):
            entering.append(hidden)
            biases = (bias[number % len(bias)] for bias in (self.content_bias, self.position_bias))
            remembered = None if past is None else past.states[number].transpose(0, 1)
            hidden = layer(hidden, remembered, distances, hidden_keys, *biases)
        self.memory.store(entering, past, limit)
        final: Tensor = self.dropout(hidden)
        return final


def _hidden_keys(tokens: Tensor, past: Past | None) -> Tensor:
    """(rows or 1, 1, length, reach): the keys that each position must not look at, the future and other texts."""
    length = tokens.size(1)
    remembered = 0 if past is None else past.states.size(1)
    future = torch.ones(length, remembered + length, dtype=torch.bool, device=tokens.device).triu(remembered + 1)
    if past is None:
        return future[None, None]
    return future | F.pad(past.unknown, (0, length))[:, None, None, :]


def encoded_distances(reach: int, clamp: int | None, like: Tensor, width: int) -> Tensor:
    """The distances reach - 1 to 0 as sines, then cosines, of geometric frequencies: (reach, width)."""
    # not in bfloat16, whose integers end at 256
    precision = torch.promote_types(like.dtype, torch.float32)
    distances = torch.arange(reach - 1, -1, -1, device=like.device, dtype=precision)
    if clamp is not None:
        distances = distances.clamp(max=clamp)
    frequencies = 10000 ** (-torch.arange(0, width, 2, device=like.device, dtype=precision) / width)
    angles = distances[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(like.dtype)


def initialise(model: TransformerXL, std: float) -> None:
    """As in the authors' code: normal with this deviation, projections of word vectors 0.01, norms' gains around 1."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, 1.0, std)
        elif isinstance(module, nn.Embedding | nn.Linear):
            nn.init.normal_(module.weight, 0.0, std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for projection in (*model.embeddings.projections, model.softmax.projection):
        if projection is not None:
            nn.init.normal_(projection.weight, 0.0, 0.01)
    nn.init.normal_(model.content_bias, 0.0, std)
    nn.init.normal_(model.position_bias, 0.0, std)
    if model.takes_targets:
        nn.init.normal_(model.softmax.cluster_weight, 0.0, std)


def _edges(cutoffs: str | int, vocabulary: int) -> list[int]:
    """Raises ModelError for what is no list of rising tokens within the vocabulary."""
    try:
        edges = [int(each) for each in str(cutoffs).split(",")] if cutoffs != "" else []
    except ValueError:
        edges = [0]
    if any(before >= after for before, after in pairwise([0, *edges])):
        raise ModelError(f"cutoffs must be rising numbers such as 20000,40000,200000, not {cutoffs!r}")
    if edges and edges[-1] >= vocabulary:
        raise ModelError(
            f"cutoffs {cutoffs} must be lower than the vocabulary's {vocabulary} tokens; set model.options.cutoffs, "
            "to '' for a plain softmax, for which model.options.div is 1"
        )
    return edges


def _check(layers: int, d_model: int, heads: int, inner: int, memories: Sequence[int], cutoffs: int, div: int) -> None:
    """Raises ModelError for sizes that do not fit together."""
    if min(layers, d_model, heads, inner, div) < 1 or min(memories) < 0:
        raise ModelError("layers, d_model, heads, inner and div must be 1 or more, and memories 0 or more")
    if d_model % heads or d_model % 2:
        raise ModelError(f"d_model must be even and a multiple of the {heads} heads, not {d_model}")
    if div > 1 and not cutoffs:
        raise ModelError(f"div {div} makes rarer clusters narrower, which needs cutoffs; set cutoffs, or div to 1")
    if d_model % div**cutoffs:
        raise ModelError(f"d_model {d_model} must be divisible by div {div} for each of {cutoffs} cutoffs")


_WIKITEXT_103 = "20000,40000,200000"
MODELS = {
    "transformer_xl": TransformerXL,
    "transformer_xl_base": partial(
        TransformerXL, layers=16, d_model=410, heads=10, inner=2100, memory=150, cutoffs=_WIKITEXT_103
    ),
    # a deviation of 0.005, as in the authors' script for TPUs and in NVIDIA's
    "transformer_xl_large": partial(
        TransformerXL,
        layers=18,
        d_model=1024,
        heads=16,
        inner=4096,
        memory=384,
        dropout=0.2,
        attention_dropout=0.2,
        cutoffs=_WIKITEXT_103,
        div=4,
        init_std=0.005,
    ),
}
