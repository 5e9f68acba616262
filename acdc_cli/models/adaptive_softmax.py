"""Word vectors and softmax of large vocabularies: rarer words have clusters of their own (arXiv 1609.04309)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acdc_cli.recipe.blocks.text import IGNORED


class AdaptiveEmbedding(nn.Module):
    """Word vectors times sqrt(d_model); words are numbered by falling frequency, and rarer clusters are narrower.

    A table of width `d_model / div^i` and a projection for each cluster i; for div 1 one table and no projection.
    """

    def __init__(self, vocabulary: int, d_model: int, cutoffs: Sequence[int], div: int) -> None:
        super().__init__()
        edges = [0, *(cutoffs if div > 1 else ()), vocabulary]
        self.starts = edges[:-1]
        self.scale = math.sqrt(d_model)
        self.tables = nn.ModuleList(
            nn.Embedding(end - start, d_model // div**cluster) for cluster, (start, end) in enumerate(pairwise(edges))
        )
        self.projections = nn.ModuleList()
        if div > 1:
            self.projections.extend(nn.Linear(d_model // div**i, d_model, bias=False) for i in range(len(self.tables)))

    def forward(self, tokens: Tensor) -> Tensor:
        """(rows, length) -> (rows, length, d_model)."""
        if not self.projections:
            embedded: Tensor = self.tables[0](tokens)
            return embedded * self.scale
        clusters = []
        # every token passes through every cluster: to pick tokens would let the host wait for the device
        for start, table, projection in zip(self.starts, self.tables, self.projections, strict=True):
            assert isinstance(table, nn.Embedding)
            own = tokens - start
            last = table.num_embeddings - 1
            inside = ((own >= 0) & (own <= last)).unsqueeze(-1)
            clusters.append(projection(torch.where(inside, table(own.clamp(0, last)), 0.0)))
        return torch.stack(clusters).sum(0) * self.scale


class AdaptiveSoftmax(nn.Module):
    """Probabilities of words through clusters of rising rarity (Grave et al., arXiv 1609.04309), tied to an embedding.

    p(word) = p(head = word) for the words below the first cutoff, else p(head = cluster) p(word | cluster). The weights
    are the embedding's tables and, past the first cluster, its projections transposed. Without cutoffs it is a softmax.
    """

    def __init__(self, vocabulary: int, d_model: int, cutoffs: Sequence[int], div: int) -> None:
        super().__init__()
        self.edges = [0, *cutoffs, vocabulary]
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        if cutoffs:
            self.cluster_weight = nn.Parameter(torch.empty(len(cutoffs), d_model))
            self.cluster_bias = nn.Parameter(torch.zeros(len(cutoffs)))
            self._losses = _uncompiled_losses()
        self.projection = nn.Linear(d_model, d_model, bias=False) if div > 1 else None

    def logits(self, hidden: Tensor, embedding: AdaptiveEmbedding) -> Tensor:
        """(..., d_model) -> (..., words of the first cluster, then one for each further cluster)."""
        if self.projection is not None:
            hidden = self.projection(hidden)
        weight, bias = self._weight(embedding, 0), self.bias[: self.edges[1]]
        if len(self.edges) > 2:
            weight, bias = torch.cat([weight, self.cluster_weight]), torch.cat([bias, self.cluster_bias])
        return F.linear(hidden, weight, bias)

    def tail_logits(self, hidden: Tensor, embedding: AdaptiveEmbedding, cluster: int) -> Tensor:
        """(..., d_model) -> (..., words of this cluster, from 1)."""
        if embedding.projections:
            projection = embedding.projections[cluster]
            assert isinstance(projection, nn.Linear)
            hidden = hidden @ projection.weight
        bias = self.bias[self.edges[cluster] : self.edges[cluster + 1]]
        return F.linear(hidden, self._weight(embedding, cluster), bias)

    def forward(self, hidden: Tensor, embedding: AdaptiveEmbedding) -> Tensor:
        """(..., d_model) -> the log-probabilities (..., vocabulary)."""
        first = self.edges[1]
        head = self.logits(hidden, embedding).log_softmax(-1)
        tails = [
            head[..., first + cluster - 1, None] + self.tail_logits(hidden, embedding, cluster).log_softmax(-1)
            for cluster in range(1, len(self.edges) - 1)
        ]
        return torch.cat([head[..., :first], *tails], dim=-1)

    def of_targets(self, hidden: Tensor, embedding: AdaptiveEmbedding, targets: Tensor) -> Tensor:
        """(n, d_model) and (n) -> the log-probability (n) of each target; 0 where the target is ignored."""
        first = self.edges[1]
        cluster = torch.stack([targets >= edge for edge in self.edges[1:-1]]).sum(0)
        in_head = torch.where(cluster == 0, targets, first + cluster - 1)
        losses = F.cross_entropy(self.logits(hidden, embedding), in_head, reduction="none", ignore_index=IGNORED)
        log_probabilities: Tensor = -self._losses(self, losses, hidden, embedding, targets, cluster)
        return log_probabilities

    def _weight(self, embedding: AdaptiveEmbedding, cluster: int) -> Tensor:
        table = embedding.tables[cluster if embedding.projections else 0]
        assert isinstance(table, nn.Embedding)
        # one table for all clusters, or one for this
        return table.weight if embedding.projections else table.weight[self.edges[cluster] : self.edges[cluster + 1]]


def _with_tails(
    softmax: AdaptiveSoftmax,
    losses: Tensor,
    hidden: Tensor,
    embedding: AdaptiveEmbedding,
    targets: Tensor,
    cluster: Tensor,
) -> Tensor:
    """Add -log p(target | cluster) to the losses of the targets beyond the first cluster."""
    # the one place where the host waits: how many targets lie in each cluster decides what is computed
    sizes = torch.stack([cluster == number for number in range(len(softmax.edges) - 1)]).sum(1).tolist()
    _, *groups = torch.split(cluster.argsort(stable=True), sizes)
    for number, positions in enumerate(groups, 1):
        # without any target too, so that every parameter has a gradient on every rank
        logits = softmax.tail_logits(hidden[positions], embedding, number)
        tail = F.cross_entropy(logits, targets[positions] - softmax.edges[number], reduction="none")
        losses = losses.index_add(0, positions, tail.to(losses.dtype))
    return losses


@cache
def _uncompiled_losses() -> Callable[..., Tensor]:
    """`_with_tails`, which torch.compile would compile anew for every number of rare words.

    Made when a model needs it, because torch imports its compiler for this, which takes a second.
    """
    uncompiled: Callable[..., Tensor] = torch.compiler.disable(_with_tails)  # type: ignore[no-untyped-call]
    return uncompiled
