"""Transformer-XL does what its paper's equations say, forgets what it should, and has its published sizes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acdc_cli.errors import ModelError
from acdc_cli.memory import set_aside
from acdc_cli.models import build
from acdc_cli.models.initialisation import Undrawn
from acdc_cli.models.transformer_xl import Attention, TransformerXL, encoded_distances
from acdc_cli.recipe.schema import ModelBlock

VOCABULARY = 24
ADAPTIVE = {"cutoffs": "6,14", "div": 2}


def tiny(**options: Any) -> TransformerXL:
    torch.manual_seed(0)
    sizes = {"layers": 2, "d_model": 8, "heads": 2, "inner": 12, "memory": 16, "init_std": 0.5, **options}
    return TransformerXL(VOCABULARY, **sizes).eval().double()


def text(length: int, rows: int = 3) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


def fresh(model: nn.Module, *inputs: Tensor) -> Tensor:
    """What the model says without memory."""
    with set_aside(model):
        output: Tensor = model(*inputs)
    return output


def four_terms(attention: Attention, query: Tensor, key: Tensor, distance: int, u: Tensor, v: Tensor) -> list[float]:
    """Scores (a) to (d) of section 3.3 for one query and one key (width), by head."""
    width = len(query) // attention.heads
    frequencies = [10000 ** (-2 * pair / len(query)) for pair in range(len(query) // 2)]
    sinusoid = [f(distance * frequency) for f in (math.sin, math.cos) for frequency in frequencies]
    q = attention.query.weight @ query
    k = attention.key_value.weight[: len(query)] @ key
    r = attention.positions.weight @ torch.tensor(sinusoid, dtype=query.dtype)
    scores = []
    for head in range(attention.heads):
        own = slice(head * width, (head + 1) * width)
        a, b = q[own] @ k[own], q[own] @ r[own]
        c, d = u[head, 0] @ k[own], v[head, 0] @ r[own]
        scores.append(float(a + b + c + d) / math.sqrt(width))
    return scores


def slow_attention(attention: Attention, x: Tensor, past: Tensor, u: Tensor, v: Tensor) -> Tensor:
    rows, length, width = x.shape
    context = torch.cat([past, x], dim=1)
    output = torch.zeros_like(x)
    for row in range(rows):
        values = context[row] @ attention.key_value.weight[width:].T
        for i in range(length):
            now = past.size(1) + i
            scores = [four_terms(attention, x[row, i], context[row, j], now - j, u, v) for j in range(now + 1)]
            weights = torch.tensor(scores, dtype=x.dtype).softmax(0)
            heads = [weights[:, h] @ values[: now + 1].chunk(attention.heads, dim=1)[h] for h in range(attention.heads)]
            output[row, i] = attention.output.weight @ torch.cat(heads)
    return output


@torch.no_grad()
@pytest.mark.parametrize("remembered", [0, 3])
def test_attention_is_the_sum_of_the_papers_four_terms(remembered: int) -> None:
    torch.manual_seed(0)
    attention = Attention(d_model=8, heads=2, dropout=0.0).double()
    past, x = torch.randn(2, remembered, 8).double(), torch.randn(2, 4, 8).double()
    u, v = torch.randn(2, 2, 1, 4).double()
    distances = encoded_distances(remembered + 4, None, x, 8)
    expected = slow_attention(attention, x, past, u, v)
    hidden = torch.ones(4, remembered + 4, dtype=torch.bool).triu(remembered + 1)
    torch.testing.assert_close(attention(x, past, distances, hidden, u, v), expected)


def test_beyond_the_clamp_all_distances_look_alike() -> None:
    like = torch.zeros(())
    clamped, plain = encoded_distances(6, 2, like, 8), encoded_distances(6, None, like, 8)
    assert torch.equal(clamped[-3:], plain[-3:])
    assert torch.equal(clamped[:4], plain[3].expand(4, 8))


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, ADAPTIVE, {"tie_biases": False}])
def test_segments_in_turn_give_what_the_whole_text_gives(options: dict[str, Any]) -> None:
    model, tokens = tiny(**options), text(11)
    whole = fresh(model, tokens)
    segments = [model(segment) for segment in tokens.split([4, 1, 6], dim=1)]
    torch.testing.assert_close(torch.cat(segments, dim=1), whole)
    model.memory.parts = {}
    assert torch.equal(model(tokens), whole)


@torch.no_grad()
def test_memory_ends_after_its_number_of_tokens_a_layer() -> None:
    # the last of five positions reaches four tokens back in its segment, then two in the memory
    model, first, then = tiny(layers=1, memory=2), text(6), text(5)
    model(first)
    logits = model(then)
    for place, influences in ((3, False), (4, True)):
        changed = first.clone()
        changed[:, place] = (changed[:, place] + 1) % VOCABULARY
        model.memory.parts = {}
        model(changed)
        assert torch.equal(model(then), logits) is not influences
    # a memory spans segments shorter than itself
    model.memory.parts = {}
    for token in first[:, -2:].split(1, dim=1):
        model(token)
    torch.testing.assert_close(model(then), logits)


@torch.no_grad()
def test_evaluation_may_remember_more_than_training() -> None:
    model, tokens = tiny(memory=2, eval_memory=7), text(9)
    model(tokens)
    assert model.memory.parts[0].states.shape == (2, 7, 3, 8)
    model.train()(tokens)
    assert model.memory.parts[0].states.shape == (2, 2, 3, 8)
    forgetful = tiny(memory=0)
    forgetful(tokens)
    assert forgetful.memory.parts == {}


@pytest.mark.parametrize("options", [{}, ADAPTIVE])
def test_no_position_sees_the_future(options: dict[str, Any]) -> None:
    model = tiny(**options)
    model(text(3))
    vectors = model.embeddings(text(6)).detach().requires_grad_()
    model.embeddings.forward = lambda tokens: vectors  # type: ignore[method-assign]
    output = model._hidden(text(6), None)
    for position in range(6):
        (gradient,) = torch.autograd.grad(output[:, position].square().sum(), vectors, retain_graph=True)
        assert gradient[:, : position + 1].abs().sum((0, 2)).gt(0).all()
        assert not gradient[:, position + 1 :].any()


def test_the_gradient_ends_at_the_memory() -> None:
    model = tiny()
    model.embeddings.tables[0].weight.data[VOCABULARY // 2 :] = 1.0
    model(text(4) % 5)
    assert not model.memory.parts[0].states.requires_grad
    # read through the layers only: the softmax's weights are the same table
    model._hidden(text(4) % 5 + 10, None).square().sum().backward()
    rows = model.embeddings.tables[0].weight.grad.abs().sum(1)
    assert not rows[:5].any()
    assert rows[10:15].any()
    # the keys and values of the memory do teach the weights that make them
    taught = model.layers[0].attention.key_value.weight.grad.clone()
    model.zero_grad()
    model.memory.parts = {}
    model._hidden(text(4) % 5 + 10, None).square().sum().backward()
    assert not torch.allclose(model.layers[0].attention.key_value.weight.grad, taught)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"cutoffs": "6,14"}, {"cutoffs": 10}, ADAPTIVE])
def test_adaptive_probabilities_sum_to_one_and_those_of_targets_are_among_them(options: dict[str, Any]) -> None:
    model, tokens = tiny(**options), text(8)
    targets = text(9)[:, 1:].clone()
    assert model.takes_targets
    every = fresh(model, tokens)
    assert every.shape == (3, 8, VOCABULARY)
    torch.testing.assert_close(every.exp().sum(-1), torch.ones(3, 8).double())
    torch.testing.assert_close(fresh(model, tokens, targets), every.gather(-1, targets[..., None]).squeeze(-1))
    targets[1, 2:] = -100
    chosen = fresh(model, tokens, targets)
    assert not chosen[1, 2:].any()
    assert chosen[0].lt(0).all()
    assert not fresh(model, tokens, torch.full_like(targets, -100)).any()


@torch.no_grad()
def test_clusters_that_weigh_what_their_words_do_give_a_plain_softmax() -> None:
    plain, adaptive, tokens = tiny(layers=1), tiny(layers=1, cutoffs="6,14"), text(5)
    adaptive.load_state_dict(plain.state_dict(), strict=False)
    logits = fresh(plain, tokens)
    assert not plain.takes_targets
    assert torch.equal(fresh(plain, tokens, tokens), logits)
    # within each cluster the same shares, whatever the head gives the cluster as a whole
    for start, end in ((0, 6), (6, 14), (14, VOCABULARY)):
        own = fresh(adaptive, tokens)[..., start:end].log_softmax(-1)
        torch.testing.assert_close(own, logits[..., start:end].log_softmax(-1))
    # no cutoffs: the class for adaptive softmax is a softmax
    hidden = torch.randn(2, 8).double()
    by_hand = hidden @ plain.embeddings.tables[0].weight.T + plain.softmax.bias
    torch.testing.assert_close(plain.softmax(hidden, plain.embeddings), by_hand.log_softmax(-1))


@torch.no_grad()
def test_a_words_vector_comes_from_its_clusters_table() -> None:
    embeddings = tiny(**ADAPTIVE).embeddings
    assert [table.weight.shape for table in embeddings.tables] == [(6, 8), (8, 4), (10, 2)]
    expected = [
        math.sqrt(8) * projection.weight @ table.weight[place]
        for table, projection, place in zip(embeddings.tables, embeddings.projections, (5, 0, 9), strict=True)
    ]
    torch.testing.assert_close(embeddings(torch.tensor([[5, 6, 23]]))[0], torch.stack(expected))
    single = tiny(cutoffs="6,14").embeddings
    assert [table.weight.shape for table in single.tables] == [(VOCABULARY, 8)]
    torch.testing.assert_close(single(text(2)), math.sqrt(8) * single.tables[0].weight[text(2)])


@pytest.mark.parametrize("options", [{}, {"cutoffs": "6,14"}, ADAPTIVE])
def test_every_parameter_has_a_gradient_though_no_target_is_rare(options: dict[str, Any]) -> None:
    model, tokens = tiny(**options).train(), text(5) % 6
    model(tokens, tokens).sum().backward()
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == len(set(names)) == len(model.state_dict())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_same_seed_gives_the_same_training_pass() -> None:
    passes = []
    for _ in range(2):
        model = tiny(dropout=0.3, attention_dropout=0.3, **ADAPTIVE).train()
        torch.manual_seed(5)
        passes.append([model(text(4), text(4)) for _ in range(2)])
    assert all(torch.equal(one, other) for one, other in zip(*passes, strict=True))
    assert not torch.equal(passes[0][0], passes[0][1])


def without_storage(name: str, vocabulary: int) -> nn.Module:
    with torch.device("meta"), Undrawn():
        return build.find(name)(num_classes=vocabulary)


@pytest.mark.parametrize("name", ["transformer_xl", "transformer_xl_large"])
def test_linear_layers_have_readable_names(name: str) -> None:
    model = without_storage(name, 300_000)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    parts = ("attention.query", "attention.key_value", "attention.positions", "attention.output")
    parts += ("feed_forward.first", "feed_forward.second")
    around = {"softmax.projection", *(f"embeddings.projections.{cluster}" for cluster in range(4))}
    assert linear == {f"layers.{number}.{part}" for number in range(len(model.layers)) for part in parts} | (
        around if name == "transformer_xl_large" else set()
    )
    assert {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)} == {
        f"embeddings.tables.{cluster}" for cluster in range(len(model.embeddings.tables))
    }


def layer(width: int, inner: int) -> int:
    """query, key and value, positions, output; feed-forward with biases; two norms."""
    return 5 * width**2 + (2 * width * inner + inner + width) + 4 * width


BASE = 16 * layer(410, 2100) + 2 * 410 + 267_735 * (410 + 1) + 3 * (410 + 1)
TABLES = 20_000 * 1024 + 20_000 * 256 + 160_000 * 64 + 67_735 * 16
PROJECTIONS = 1024 * (1024 + 256 + 64 + 16) + 1024 * 1024
LARGE = 18 * layer(1024, 4096) + 2 * 1024 + TABLES + PROJECTIONS + 267_735 + 3 * (1024 + 1)


@pytest.mark.parametrize(
    ("name", "by_hand", "expected"),
    # the log of the authors' run of the base model reports this number; AC/DC's paper 285M for the large one
    [("transformer_xl_base", BASE, 151_107_538), ("transformer_xl_large", LARGE, 285_170_506)],
)
def test_published_sizes_for_wikitext_103(name: str, by_hand: int, expected: int) -> None:
    model = without_storage(name, 267_735)
    assert sum(parameter.numel() for parameter in model.parameters()) == by_hand == expected


def test_weights_start_as_in_the_authors_code() -> None:
    torch.manual_seed(0)
    model = TransformerXL(3000, layers=1, d_model=64, cutoffs="1000", div=2)
    first = model.layers[0]
    deviations = {
        0.02: [first.attention.query, first.feed_forward.first, *model.embeddings.tables],
        0.01: [*model.embeddings.projections, model.softmax.projection],
    }
    for deviation, modules in deviations.items():
        assert [module.weight.std().item() for module in modules] == pytest.approx([deviation] * len(modules), rel=0.06)
    gain = first.attention_norm.weight
    assert (gain.mean().item(), gain.std().item()) == (pytest.approx(1, abs=0.01), pytest.approx(0.02, rel=0.4))
    zero = (first.feed_forward.first.bias, first.attention_norm.bias, model.softmax.bias, model.softmax.cluster_bias)
    assert not any(bias.any() for bias in zero)
    assert all(bias.any() for bias in (model.content_bias, model.position_bias, model.softmax.cluster_weight))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoffs": "14,6"}, "cutoffs must be rising numbers such as 20000,40000,200000, not '14,6'"),
        ({"cutoffs": "6;14"}, "cutoffs must be rising numbers "),
        ({"cutoffs": 0}, "cutoffs must be rising numbers "),
        ({"cutoffs": "6,24"}, "cutoffs 6,24 must be lower than the vocabulary's 24 tokens"),
        ({"d_model": 30}, "d_model must be even and a multiple of the 4 heads, not 30"),
        ({"cutoffs": "6,14", "div": 16}, "d_model 128 must be divisible by div 16 for each of 2 cutoffs"),
        ({"div": 4}, "div 4 makes rarer clusters narrower, which needs cutoffs"),
        ({"memory": -1}, "and memories 0 or more"),
        ({"layers": 0}, "layers, d_model, heads, inner and div must be 1 or more"),
    ],
)
def test_options_that_do_not_fit_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build.build(ModelBlock(name="transformer_xl", options=options), VOCABULARY)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_large_models_cutoffs_need_a_large_vocabulary() -> None:
    with pytest.raises(ModelError, match=r"must be lower than the vocabulary's 5000 tokens; set model.options.cutoffs"):
        build.build(ModelBlock(name="transformer_xl_large"), 5000)
