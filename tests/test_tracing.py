"""One forward pass: what is seen of parameters, scalars and attention, and that the pass itself does not notice."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Called
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from coordcheck.recording.graph.attention import fused_logits
from coordcheck.recording.graph.calls import UseCall
from coordcheck.recording.graph.flow import AttentionCall
from coordcheck.recording.graph.tracer import Tracer

IN, OUT = 8, 12


def traced(model: nn.Module, *args: Any, loss: Callable[[Any], Tensor] = lambda out: out.pow(2).mean()) -> Tracer:
    """The trace of a forward pass and its loss."""
    with Tracer(model) as tracer:
        loss(model(*args))
    return tracer


def only(tracer: Tracer, parameter: str = "w.weight") -> UseCall:
    (use,) = (use for (name, _), use in tracer.uses.items() if name == parameter)
    return use


def examples() -> Tensor:
    return torch.randn(4, IN, generator=torch.Generator().manual_seed(0))


def rms(tensor: Tensor) -> float:
    return tensor.detach().double().pow(2).mean().sqrt().item()


# What takes a parameter


@pytest.mark.parametrize(
    ("function", "shape", "operation"),
    [
        pytest.param(lambda s, x: F.linear(x, s.p), (OUT, IN), "linear", id="F.linear"),
        pytest.param(lambda s, x: x @ s.p, (IN, OUT), "matmul", id="x @ W"),
        pytest.param(lambda s, x: x @ s.p.t(), (OUT, IN), "matmul", id="x @ W.t()"),
        pytest.param(lambda s, x: x @ s.p.T, (OUT, IN), "matmul", id="x @ W.T"),
        pytest.param(lambda s, x: F.linear(x, s.p[0]), (3, OUT, IN), "linear", id="W[0]"),
        pytest.param(lambda s, x: F.linear(x, s.p.view(OUT, IN)), (2, OUT // 2, IN), "linear", id="a view"),
        pytest.param(lambda s, x: F.linear(x, s.p.to(x.dtype)), (OUT, IN), "linear", id="cast to its own type"),
        pytest.param(lambda s, x: F.linear(x, s.p.detach()), (OUT, IN), "linear", id="detached"),
        pytest.param(lambda s, x: F.linear(x, s.p.contiguous()), (OUT, IN), "linear", id="contiguous already"),
        pytest.param(lambda s, x: torch.einsum("bi,oi->bo", x, s.p), (OUT, IN), "einsum", id="einsum"),
        pytest.param(lambda s, x: x * s.p, (IN,), "mul", id="gain"),
        pytest.param(lambda s, x: x + s.p, (IN,), "add", id="shift"),
        pytest.param(lambda s, x: x + s.p[: len(x)], (9, IN), "add", id="positions"),
    ],
)
def test_a_parameter_is_found_in_the_function_that_takes_it(function: Any, shape: tuple[int, ...], operation: str):
    model = Called(function, p=torch.randn(shape))
    use = only(traced(model, examples()), "p")
    assert use.operation == operation
    assert use.operand.of(model.p, {}).shape == use.operand.size
    replayed = use.call({use.position: use.operand.of(model.p.detach(), {})})
    assert torch.equal(replayed, model(examples()))


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda s, x: F.linear(x, s.p.to(x)), id="to(x)"),
        pytest.param(lambda s, x: F.linear(x, s.p.type_as(x)), id="type_as(x)"),
    ],
)
def test_a_cast_is_no_use(function: Any):
    tracer = traced(Called(function, p=torch.randn(OUT, IN)), examples())
    assert list(tracer.uses) == [("p", "linear")]


def test_an_expansion_is_no_use():
    tracer = traced(Called(lambda s, x: x + s.p.expand_as(x), p=torch.randn(IN)), examples())
    assert list(tracer.uses) == [("p", "add")]


def test_a_parameter_that_nothing_takes_is_not_seen():
    model = Called(lambda s, x: F.linear(x, s.p), p=torch.randn(OUT, IN), unused=torch.randn(OUT, IN))
    assert {name for name, _ in traced(model, examples()).uses} == {"p"}


def test_another_tensor_of_the_same_shape_is_no_parameter():
    model = Called(lambda s, x: F.linear(x, torch.ones(OUT, IN)), p=torch.randn(OUT, IN))
    assert traced(model, examples()).uses == {}


def test_layers_are_those_in_whose_call_the_function_ran():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.p = nn.Sequential(nn.Linear(IN, IN)), nn.Parameter(torch.ones(IN))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.inner(x), self.inner[0].weight) * self.p

    tracer = traced(Outer(), examples())
    assert only(tracer, "p").layer == "(model)"
    assert only(tracer, "inner.0.bias").layer == "inner.0"
    assert only(tracer, "inner.0.weight").layer == "(model)", "the last call counts"


def test_a_tied_weight_has_a_use_per_function():
    model = Called(lambda s, ids: F.linear(s.e(ids), s.e.weight), e=nn.Embedding(10, IN))
    assert list(traced(model, torch.arange(5)).uses) == [("e.weight", "embedding"), ("e.weight", "linear")]


def test_both_parameters_of_views_into_one_storage_are_told_apart():
    flat = torch.randn(2 * IN)
    model = Called(lambda s, x: x * s.first + s.second)
    model.first, model.second = nn.Parameter(flat[:IN]), nn.Parameter(flat[IN:])
    assert {name: use.operation for (name, _), use in traced(model, examples()).uses.items()} == {
        "first": "mul",
        "second": "add",
    }


# Fused projections


SPLIT: list[Any] = [
    pytest.param(lambda h: h.chunk(3, -1), id="chunk"),
    pytest.param(lambda h: h.split(h.shape[-1] // 3, -1), id="split"),
    pytest.param(lambda h: h.tensor_split(3, -1), id="tensor_split"),
    pytest.param(lambda h: h.reshape(*h.shape[:-1], 3, -1).unbind(-2), id="reshape and unbind"),
    pytest.param(
        lambda h: h.reshape(*h.shape[:2], 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0), id="heads, permute, unbind"
    ),
]


@pytest.mark.parametrize("split", SPLIT)
def test_blocks_of_a_fused_projection_are_noted(split: Any):
    model = Called(lambda s, x: sum(split(s.w(x))), w=nn.Linear(IN, 3 * OUT))
    assert only(traced(model, torch.randn(2, 5, IN))).pieces == (OUT, OUT, OUT)


def test_blocks_of_unequal_size_are_noted():
    model = Called(lambda s, x: torch.cat(s.w(x).split([OUT, 2, 2], -1), -1), w=nn.Linear(IN, OUT + 4))
    assert only(traced(model, torch.randn(2, 5, IN))).pieces == (OUT, 2, 2)


def test_blocks_taken_by_index_are_noted():
    def forward(s: Any, x: Tensor) -> Tensor:
        qkv = s.w(x).reshape(*x.shape[:2], 3, 2, -1).permute(2, 0, 3, 1, 4)
        return qkv[0] + qkv[1] + qkv[2]

    assert only(traced(Called(forward, w=nn.Linear(IN, 3 * OUT)), torch.randn(2, 5, IN))).pieces == (OUT,) * 3


@pytest.mark.parametrize(
    "taken",
    [
        pytest.param(lambda h: h[:, 0], id="class token"),
        pytest.param(lambda h: h[:, -1], id="last token"),
        pytest.param(lambda h: h[0], id="first example"),
        pytest.param(lambda h: h.chunk(2, 0)[0], id="half of the batch"),
        pytest.param(lambda h: h.view(3, 4, 4, 3)[..., 0], id="interleaved heads"),
        pytest.param(lambda h: h[..., :6], id="some channels"),
    ],
)
def test_examples_and_tokens_are_no_blocks(taken: Any):
    model = Called(lambda s, x: taken(s.w(x)), w=nn.Linear(IN, OUT))
    assert only(traced(model, torch.randn(3, 4, IN))).pieces == ()


def test_unbound_time_steps_are_no_blocks():
    model = Called(lambda s, x: sum(s.w(x).unbind(1)), w=nn.Linear(IN, OUT))
    assert only(traced(model, torch.randn(3, 4, IN))).pieces == ()


# Scalars beside an operation


def factors(use: UseCall) -> tuple[float, float, float]:
    return use.upstream, use.operand.factor, use.downstream


SCALARS: list[Any] = [
    pytest.param(lambda s, x: s.w(x), (1, 1, 1), id="none"),
    pytest.param(lambda s, x: s.w(x * 0.5), (0.5, 1, 1), id="before"),
    pytest.param(lambda s, x: s.w(0.5 * x), (0.5, 1, 1), id="before, from the left"),
    pytest.param(lambda s, x: s.w(x / 4), (0.25, 1, 1), id="before, divided"),
    pytest.param(lambda s, x: s.w(x) * 0.5, (1, 1, 0.5), id="after"),
    pytest.param(lambda s, x: s.w(x) / 4, (1, 1, 0.25), id="after, divided"),
    pytest.param(lambda s, x: s.w(x) * -2, (1, 1, -2), id="negative"),
    pytest.param(lambda s, x: s.w(x) * 0.5 * 3, (1, 1, 1.5), id="chain of two"),
    pytest.param(lambda s, x: s.w(x * 0.5) * 3, (0.5, 1, 3), id="both sides"),
    pytest.param(lambda s, x: s.w(x) * torch.tensor(0.5), (1, 1, 0.5), id="0-d tensor"),
    pytest.param(lambda s, x: s.w(x) * torch.tensor([0.5]), (1, 1, 0.5), id="tensor of one element"),
    pytest.param(lambda s, x: s.w(x).mul_(0.5), (1, 1, 0.5), id="mul_"),
    pytest.param(lambda s, x: s.w(x).div_(4), (1, 1, 0.25), id="div_"),
    pytest.param(lambda s, x: torch.mul(s.w(x), 0.5), (1, 1, 0.5), id="torch.mul"),
    pytest.param(lambda s, x: torch.div(s.w(x), 4), (1, 1, 0.25), id="torch.div"),
    pytest.param(lambda s, x: s.w(x) * math.sqrt(4), (1, 1, 2), id="math.sqrt"),
    pytest.param(lambda s, x: s.w(x).view(2, -1) * 0.5, (1, 1, 0.5), id="through a view"),
    pytest.param(lambda s, x: s.w(x).float() * 0.5, (1, 1, 0.5), id="through a cast"),
    pytest.param(lambda s, x: s.w(x).clone().transpose(0, 1).contiguous() * 0.5, (1, 1, 0.5), id="through copies"),
    pytest.param(lambda s, x: nn.Identity()(s.w(x)) * 0.5, (1, 1, 0.5), id="through an identity"),
    pytest.param(lambda s, x: s.w(F.relu(x) * 0.5), (0.5, 1, 1), id="after an activation, before"),
    pytest.param(lambda s, x: F.relu(s.w(x)) * 0.5, (1, 1, 1), id="after the next activation"),
    pytest.param(lambda s, x: F.linear(x, s.w.weight * 0.5), (1, 0.5, 1), id="on the weight"),
    pytest.param(lambda s, x: F.linear(x, s.w.weight / 4 * 2), (1, 0.5, 1), id="twice on the weight"),
    pytest.param(lambda s, x: F.linear(x, s.w.weight.view(OUT, IN) * 0.5), (1, 0.5, 1), id="on a view of the weight"),
    pytest.param(lambda s, x: x.new_ones(4, OUT) + s.w(x) * 0.5, (1, 1, 0.5), id="on a branch"),
    pytest.param(lambda s, x: torch.div(s.w(x), 4, rounding_mode="floor"), (1, 1, 1), id="no plain quotient"),
    pytest.param(lambda s, x: 4 / s.w(x), (1, 1, 1), id="in the denominator"),
    pytest.param(lambda s, x: s.w(x) * s.w(x).norm(), (1, 1, 1), id="times a computed number"),
]


@pytest.mark.parametrize(("function", "expected"), SCALARS)
def test_scalars_next_to_an_operation_belong_to_it(function: Any, expected: tuple[float, float, float]):
    model = Called(function, w=nn.Linear(IN, OUT, bias=False))
    assert factors(only(traced(model, examples()))) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        pytest.param(lambda s, x: s.w(x)[:, 0] * 0.5, (1, 1, 0.5), id="through an index"),
        pytest.param(lambda s, x: s.w(x).mT * 0.5, (1, 1, 0.5), id="through .mT"),
        pytest.param(lambda s, x: F.dropout(s.w(x), 0.1) * 0.5, (1, 1, 0.5), id="through dropout"),
        pytest.param(lambda s, x: s.w(x).flip(0) * 0.5, (1, 1, 0.5), id="through another order"),
        pytest.param(lambda s, x: s.w((x * 0.5).roll(1, 0)), (0.5, 1, 1), id="in front of another order"),
        pytest.param(lambda s, x: s.w((x * torch.tensor(0.5)).repeat(2, 1)), (0.5, 1, 1), id="repeated"),
        pytest.param(lambda s, x: -s.w(x) * 0.5, (1, 1, -0.5), id="through a sign"),
        pytest.param(lambda s, x: F.linear(x, (s.w.weight * 0.5).view(OUT, IN)), (1, 0.5, 1), id="view of the scaled"),
        pytest.param(lambda s, x: x @ (s.w.weight * 0.5).t(), (1, 0.5, 1), id="transpose of the scaled"),
    ],
)
def test_scalars_are_followed_through_functions_that_keep_scale(function: Any, expected: tuple[float, float, float]):
    model = Called(function, w=nn.Linear(IN, OUT, bias=False))
    assert factors(only(traced(model, examples()))) == pytest.approx(expected)


def between(function: Callable[[Any, Tensor], Tensor]) -> tuple[UseCall, UseCall]:
    model = Called(function, a=nn.Linear(IN, OUT), b=nn.Linear(OUT, 3))
    tracer = traced(model, examples())
    return only(tracer, "a.weight"), only(tracer, "b.weight")


@pytest.mark.parametrize("activation", [F.relu, torch.tanh, nn.GELU()])
def test_a_scalar_between_an_activation_and_the_next_operation_belongs_to_the_next(activation: Any):
    first, second = between(lambda s, x: s.b(activation(s.a(x)) * 0.5))
    assert (first.downstream, second.upstream) == (1, 0.5)


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.SiLU(inplace=True), lambda h: h.relu_()])
def test_the_same_after_an_activation_in_place(activation: Any):
    first, second = between(lambda s, x: s.b(activation(s.a(x)) * 0.5))
    assert (first.downstream, second.upstream) == (1, 0.5)


def test_a_scalar_between_two_operations_belongs_to_the_first_and_counts_once():
    first, second = between(lambda s, x: s.b(s.a(x) * 0.5))
    assert (first.downstream, second.upstream) == (0.5, 1)


def test_a_scalar_on_one_branch_only_is_not_the_operations_own():
    first, second = between(lambda s, x: s.b(s.a(x) * 0.5) + s.a.weight.new_zeros(()) + s.a(x).sum())
    assert second.upstream == 1 or first.downstream == 1
    model = Called(lambda s, x: (lambda h: s.b(h * 0.5) + h.tanh()[:, :3])(s.a(x)), a=first_linear(), b=readout())
    tracer = traced(model, examples())
    assert only(tracer, "a.weight").downstream == 1
    assert only(tracer, "b.weight").upstream == 0.5


def first_linear() -> nn.Linear:
    return nn.Linear(IN, OUT)


def readout() -> nn.Linear:
    return nn.Linear(OUT, 3)


def test_a_bias_has_no_scalars_before_it():
    model = Called(lambda s, x: s.w(x * 0.5) * 3, w=nn.Linear(IN, OUT))
    assert only(traced(model, examples()), "w.bias").upstream == 1


steps = st.tuples(
    st.sampled_from(["mul", "rmul", "div", "mul_", "tensor", "view", "clone"]),
    st.floats(0.25, 4).map(lambda value: round(value, 2)),
)


def _applied(tensor: Tensor, chain: list[tuple[str, float]]) -> Tensor:
    for name, value in chain:
        if name == "mul":
            tensor = tensor * value
        elif name == "rmul":
            tensor = value * tensor
        elif name == "div":
            tensor = tensor / value
        elif name == "mul_":
            tensor = tensor.clone().mul_(value)
        elif name == "tensor":
            tensor = torch.tensor(value, dtype=tensor.dtype) * tensor
        else:
            tensor = tensor.reshape(tensor.shape).clone() if name == "clone" else tensor.view(*tensor.shape)
    return tensor


@given(st.lists(steps, max_size=4), st.lists(steps, max_size=4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_traced_factors_multiply_to_the_true_multiplier(before: Any, after: Any, on_weight: bool):
    """Model(x) = m * linear(x), whichever chain of scalars stands around the linear."""
    weight = nn.Linear(IN, OUT, bias=False).double()
    x = examples().double()
    model = Called(
        lambda s, x: _applied(F.linear(_applied(x, before), s.w.weight * 0.5 if on_weight else s.w.weight), after),
        w=weight,
    )
    use = only(traced(model, x))
    true = (model(x) / F.linear(x, weight.weight)).mean().item()
    assert math.prod(factors(use)) == pytest.approx(true, rel=1e-6)


# Attention


def heads(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attended(**options: Any) -> AttentionCall:
    """The attention call of one `scaled_dot_product_attention` on (2, 3, 5, 4) queries, keys and values."""
    shapes = options.pop("shapes", ((2, 3, 5, 4),) * 3)
    q, k, v = (heads(seed, *shape) for seed, shape in enumerate(shapes))
    with Tracer(nn.Identity()) as tracer:
        F.scaled_dot_product_attention(q, k, v, **options)
    (attention,) = tracer.attentions
    return attention


def explicit(scale: float = 0.5, shapes: Any = ((2, 3, 5, 4),) * 2) -> Tensor:
    q, k = (heads(seed, *shape) for seed, shape in enumerate(shapes))
    return q @ k.transpose(-1, -2) * scale


CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()


def test_fused_logits_have_the_default_scale():
    attention = attended()
    assert (attention.scale, attention.head_size) == (0.5, 4)
    torch.testing.assert_close(attention.logits, explicit().flatten())


def test_fused_logits_have_their_own_scale():
    attention = attended(scale=0.125)
    assert attention.scale == 0.125
    torch.testing.assert_close(attention.logits, explicit(0.125).flatten())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"is_causal": True}, id="is_causal"),
        pytest.param({"attn_mask": CAUSAL}, id="boolean"),
        pytest.param({"attn_mask": torch.zeros(5, 5).masked_fill(~CAUSAL, -torch.inf)}, id="additive -inf"),
        pytest.param({"attn_mask": torch.zeros(5, 5).masked_fill(~CAUSAL, -10000.0)}, id="additive -10000"),
        pytest.param({"attn_mask": CAUSAL.expand(2, 1, 5, 5)}, id="broadcast"),
        pytest.param(
            {"attn_mask": torch.zeros(5, 5).masked_fill(~CAUSAL, torch.finfo(torch.float32).min)}, id="additive min"
        ),
    ],
)
def test_masked_logits_are_left_out(options: dict[str, Any]):
    seen = explicit()[CAUSAL.expand(2, 3, 5, 5)]
    torch.testing.assert_close(attended(**options).logits, seen)
    assert len(seen) < explicit().numel()


def test_a_mask_of_keys_alone_is_broadcast():
    mask = torch.tensor([True, True, False, True, False])[None, None, None].expand(2, 1, 1, 5)
    torch.testing.assert_close(attended(attn_mask=mask).logits, explicit()[mask.expand(2, 3, 5, 5)])


def test_an_additive_bias_is_not_part_of_the_logits():
    torch.testing.assert_close(attended(attn_mask=torch.ones(5, 5)).logits, explicit().flatten())


def test_grouped_queries_meet_their_own_keys():
    shapes = ((2, 6, 5, 4), (2, 2, 5, 4), (2, 2, 5, 4))
    q, k = heads(0, *shapes[0]), heads(1, *shapes[1]).repeat_interleave(3, 1)
    attention = attended(shapes=shapes, enable_gqa=True)
    torch.testing.assert_close(attention.logits, (q @ k.transpose(-1, -2) * 0.5).flatten())


def test_other_lengths_of_queries_and_keys():
    shapes = ((2, 3, 4, 4), (2, 3, 7, 4), (2, 3, 7, 4))
    causal = torch.ones(4, 7, dtype=torch.bool).tril()
    logits = explicit(0.5, shapes[:2])
    torch.testing.assert_close(attended(shapes=shapes).logits, logits.flatten())
    expected = logits[causal.expand(2, 3, 4, 7)]
    torch.testing.assert_close(attended(shapes=shapes, is_causal=True).logits, expected)


def test_long_sequences_are_looked_at_on_some_queries():
    q, k = heads(0, 1, 2, 300, 4), heads(1, 1, 2, 300, 4)
    logits = fused_logits({"query": q, "key": k}, 0.5)
    assert logits.numel() == 2 * 64 * 300
    assert rms(logits) == pytest.approx(rms(q @ k.transpose(-1, -2) * 0.5), rel=0.1)
    half = fused_logits({"query": q, "key": k, "is_causal": True}, 0.5).numel()
    assert half == pytest.approx(logits.numel() / 2, rel=0.05)


class Attention(nn.Module):
    """Self-attention with (batch, heads, time, D) products written out, or fused."""

    def __init__(self, kind: str, heads: int = 2, width: int = 8) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.kind, self.heads = kind, heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            m(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for m in (self.q, self.k, self.v)
        )  # (batch, heads, time, D)
        scale = q.shape[-1] ** -0.5
        if self.kind == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v)
        elif self.kind == "query first":
            mixed = ((q * scale) @ k.transpose(-1, -2)).softmax(-1) @ v
        elif self.kind == "key first":
            mixed = (q @ (k * scale).transpose(-1, -2)).softmax(-1) @ v
        elif self.kind == "einsum":
            mixed = F.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k) * scale, -1) @ v
        elif self.kind == "in place":
            mixed = (q @ k.transpose(-1, -2)).mul_(scale).softmax(-1) @ v
        elif self.kind == "masked":
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            mixed = (q @ k.transpose(-1, -2) * scale).masked_fill(mask, -torch.inf).softmax(-1) @ v
        elif self.kind == "masked in place":
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            mixed = (q @ k.transpose(-1, -2) * scale).masked_fill_(mask, -torch.inf).softmax(-1) @ v
        elif self.kind == "masked raw scores in place":
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            mixed = ((q @ k.transpose(-1, -2)).masked_fill_(mask, -torch.inf) * scale).softmax(-1) @ v
        elif self.kind == "mT":
            mixed = (q @ k.mT * scale).softmax(-1) @ v
        elif self.kind == "rotary":
            cos = torch.linspace(0.5, 1, x.shape[1])[:, None]
            mixed = (((q * scale) * cos) @ (k * cos).transpose(-1, -2)).softmax(-1) @ v
        else:
            mixed = (q @ k.transpose(-1, -2) * scale).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


def attention_of(kind: str) -> tuple[AttentionCall, Tracer]:
    torch.manual_seed(0)
    tracer = traced(Attention(kind), heads(9, 3, 5, 8))
    (attention,) = tracer.attentions
    return attention, tracer


KINDS = ["eager", "query first", "key first", "einsum", "masked"]


@pytest.mark.parametrize("kind", KINDS)
def test_eager_attention_is_seen_as_fused_attention_is(kind: str):
    fused, _ = attention_of("fused")
    eager, tracer = attention_of(kind)
    assert (eager.scale, eager.head_size) == (pytest.approx(fused.scale), fused.head_size)
    assert rms(eager.logits) == pytest.approx(rms(fused.logits), rel=1e-5)
    assert eager in only(tracer, "q.weight").feeds
    assert eager in only(tracer, "k.weight").feeds


@pytest.mark.parametrize("kind", ["in place", "masked raw scores in place"])
def test_scores_changed_in_place_are_seen_as_they_were(kind: str):
    assert rms(attention_of(kind)[0].logits) == pytest.approx(rms(attention_of("fused")[0].logits), rel=1e-5)


def test_scores_masked_in_place_after_their_scale_are_seen_as_they_were():
    assert rms(attention_of("masked in place")[0].logits) == pytest.approx(rms(attention_of("fused")[0].logits))


def test_keys_transposed_by_a_property_feed_attention():
    attention, tracer = attention_of("mT")
    assert attention in only(tracer, "k.weight").feeds


def test_a_scale_before_rotary_positions_is_the_attentions():
    attention, tracer = attention_of("rotary")
    assert attention.scale == pytest.approx(0.5)
    assert only(tracer, "q.weight").downstream == 1


@pytest.mark.parametrize("kind", ["eager", "fused", "query first", "key first"])
def test_an_attentions_scale_belongs_to_no_projection(kind: str):
    _, tracer = attention_of(kind)
    for name in ("q", "k", "v", "out"):
        assert factors(only(tracer, f"{name}.weight")) == (1, 1, 1)


def scaled_blocks(split: Callable[[Tensor], Any], factors: Tensor) -> tuple[float, Tensor | None]:
    """The scale of an attention of three blocks of a projection, and what its channels are multiplied by besides."""

    def forward(s: Any, x: Tensor) -> Tensor:
        q, k, v = (block if block.dim() == 4 else block[:, None] for block in split(s.w(x) * factors.view(1, 1, -1)))
        return F.scaled_dot_product_attention(q, k, v)

    tracer = traced(Called(forward, w=nn.Linear(IN, 3 * OUT)), torch.randn(2, 5, IN))
    (found,) = tracer.attentions
    return found.scale, only(tracer).own_along


def shaped(h: Tensor) -> list[Tensor]:
    """Three blocks, of which the others take the shape of the first."""
    q, k, v = h.chunk(3, -1)
    return [q, k.expand_as(q), v.expand_as(q)]


def turned(h: Tensor) -> list[Tensor]:
    """Three blocks, with rotary positions on a part of the first two."""
    q, k, v = h.chunk(3, -1)
    angles = torch.linspace(0, 1, h.shape[1])[:, None]
    return [
        *(torch.cat([t[..., :4] * angles.cos() + t[..., :4].flip(-1) * angles.sin(), t[..., 4:]], -1) for t in (q, k)),
        v,
    ]


THIRDS = [torch.arange(0, OUT), torch.arange(OUT, 2 * OUT), torch.arange(2 * OUT, 3 * OUT)]
PER_HEAD = [torch.cat([torch.arange(6) + 6 * third, torch.arange(18, 24) + 6 * third]) for third in range(3)]
FUSED = [
    *(pytest.param(*one.values, THIRDS, id=one.id) for one in SPLIT),
    pytest.param(lambda h: h.view(*h.shape[:2], 2, 18).chunk(3, -1), PER_HEAD, id="thirds of each head"),
    pytest.param(shaped, THIRDS, id="expand_as"),
    pytest.param(turned, THIRDS, id="rotary positions"),
]


@pytest.mark.parametrize(("split", "places"), FUSED)
def test_a_scale_of_some_channels_is_the_attentions_whose_queries_or_keys_they_are(split: Any, places: list[Tensor]):
    several = torch.linspace(1, 2, 3 * OUT).round(decimals=1)  # no block has a scale of its own
    plain, _ = scaled_blocks(split, several)
    for block, expected in zip(places, (0.5, 0.5, 1), strict=True):
        factors = torch.ones(3 * OUT)
        factors[block] = 0.5
        scale, left = scaled_blocks(split, factors)
        assert scale == pytest.approx(expected * plain)
        assert left is not None
        assert left.tolist() == (factors.tolist() if expected == 1 else [1] * 3 * OUT)


def test_a_scale_of_normed_queries_is_what_their_norm_gives_less():
    def forward(s: Any, x: Tensor) -> Tensor:
        q, k, v = (heads.unflatten(-1, (2, -1)).transpose(1, 2) for heads in s.w(x).chunk(3, -1))
        return F.scaled_dot_product_attention(s.q_norm(q), k, v)

    model = Called(forward, w=nn.Linear(IN, 3 * OUT), q_norm=nn.RMSNorm(OUT // 2))
    model.q_norm.register_forward_hook(lambda module, args, output: output * 0.25)
    assert traced(model, torch.randn(2, 5, IN)).outside == {"q_norm": 4.0}


def test_a_scale_of_what_a_norm_gives_to_a_matrix_is_what_it_gives_less():
    model = Called(
        lambda s, x: F.linear(s.norm(s.w(x)), s.p), w=nn.Linear(IN, IN), norm=nn.RMSNorm(IN), p=torch.randn(3, IN)
    )
    model.norm.register_forward_hook(lambda module, args, output: output * 0.25)
    assert traced(model, examples()).outside == {"norm": 4.0}


def test_a_product_without_softmax_is_no_attention():
    model = Called(lambda s, x: (s.a(x) @ s.a(x).transpose(-1, -2)).relu() @ x, a=nn.Linear(IN, IN))
    assert traced(model, torch.randn(2, 5, IN)).attentions == []


@pytest.mark.parametrize("product", [lambda x, w: F.linear(x, w), lambda x, w: x @ w.t()])
def test_a_router_is_no_attention(product: Any):
    model = Called(lambda s, x: product(x, s.p).softmax(-1), p=torch.randn(3, IN))
    assert traced(model, examples()).attentions == []


def test_a_router_of_unit_vectors_is_no_attention():
    model = Called(
        lambda s, x: F.linear(F.normalize(x, dim=-1), F.normalize(s.p, dim=-1)).softmax(-1), p=torch.randn(3, IN)
    )
    assert traced(model, examples()).attentions == []


@pytest.mark.parametrize("need_weights", [True, False])
def test_torchs_own_attention_is_looked_into(need_weights: bool):
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    x = heads(0, 3, 5, 8)
    tracer = traced(model, x, x, x, loss=lambda out: out[0].pow(2).mean())
    assert {name for name, _ in tracer.uses} == {"in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"}
    q, k, _ = F.linear(x, model.in_proj_weight, model.in_proj_bias).chunk(3, -1)
    q, k = (t.view(3, 5, 2, 4).transpose(1, 2) for t in (q, k))
    (attention,) = tracer.attentions
    assert (attention.scale, attention.head_size) == (pytest.approx(0.5), 4)
    assert rms(attention.logits) == pytest.approx(rms(q @ k.transpose(-1, -2) / 2), rel=1e-5)
    assert attention in only(tracer, "in_proj_weight").feeds
    assert need_weights is not None


def test_torchs_own_attention_has_three_blocks():
    x = heads(0, 3, 5, 8)
    tracer = traced(nn.MultiheadAttention(8, 2, batch_first=True), x, x, x, loss=lambda out: out[0].pow(2).mean())
    assert only(tracer, "in_proj_weight").pieces == (8, 8, 8)


# What feeds what


def test_matrices_feed_the_next_matrix_through_what_lies_between():
    model = nn.Sequential(nn.Linear(IN, OUT), nn.LayerNorm(OUT), nn.GELU(), nn.Dropout(0.1), nn.Linear(OUT, 3))
    tracer = traced(model, examples())
    first, last = only(tracer, "0.weight"), only(tracer, "4.weight")
    assert (first.feeds, last.feeds) == ({last}, set())


def test_a_residual_stream_feeds_every_branch():
    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        h = h + s.b(h)
        return s.c(h)

    tracer = traced(Called(forward, a=nn.Linear(IN, IN), b=nn.Linear(IN, IN), c=nn.Linear(IN, 3)), examples())
    a, b, c = (only(tracer, f"{name}.weight") for name in "abc")
    assert (a.feeds, b.feeds) == ({b, c}, {c})


# The pass itself does not notice


def mlp_model() -> nn.Module:
    return nn.Sequential(nn.Linear(IN, 16), nn.ReLU(inplace=True), nn.LayerNorm(16), nn.Dropout(0.2), nn.Linear(16, 3))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.inner, self.reentrant = nn.Linear(IN, IN), mlp_model(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, self.first(x), use_reentrant=self.reentrant)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.cell = kind(IN, 6, num_layers=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x[:, None].expand(-1, 3, -1))[0][:, -1]


class Squared(torch.autograd.Function):
    """x W, squared, with its own backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return (x @ weight).pow(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        inner = 2 * (x @ weight) * gradient
        return inner @ weight.t(), x.t() @ inner


def _written_into(s: Any, x: Tensor) -> Tensor:
    h = s.a(x).clone()
    h[:, 0] = 0
    h[:, 1] *= 2
    h.add_(1).clamp_(-1, 1)
    return s.b(h)


def _partly_without_gradient(s: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        offset = s.a(x).mean()
    with torch.inference_mode():
        s.a(x)
    return s.b(s.a(x) - offset)


def _complex(s: Any, x: Tensor) -> Tensor:
    return s.b(torch.fft.ifft(torch.fft.fft(s.a(x)) * 1j).imag)


def _sparse(s: Any, x: Tensor) -> Tensor:
    return s.b(torch.sparse.mm(torch.eye(len(x)).to_sparse(), s.a(x)))


def _integers(s: Any, x: Tensor) -> Tensor:
    kept = (x > 0).sum(1)
    best = s.a(x).argmax(1) + kept.clamp(max=0)
    return s.b(s.a(x)) + best[:, None]


def _functional(s: Any, x: Tensor) -> Tensor:
    doubled = {name: 2 * parameter for name, parameter in s.a.named_parameters()}
    return s.b(torch.func.functional_call(s.a, doubled, (x,)))


def _vectorised(s: Any, x: Tensor) -> Tensor:
    return torch.vmap(lambda row: s.b(s.a(row)))(x)


def _differentiated(s: Any, x: Tensor) -> Tensor:
    return s.b(torch.func.vjp(s.a, x)[0])


def _wrapped(s: Any, x: Tensor) -> Tensor:
    return s.b(torch.stack([s.a(row) for row in x.unbind()]))


def _out_of_shape(s: Any, x: Tensor) -> Tensor:
    return s.b(torch.cat([s.a(x[:0]), s.a(x)]))


def _nested(s: Any, x: Tensor) -> Tensor:
    ragged = torch.nested.nested_tensor([x[:1], x[1:]], layout=torch.jagged)
    return s.b(s.a(x)) + ragged.values().sum()


def two(function: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    return Called(function, a=nn.Linear(IN, OUT), b=nn.Linear(OUT, 3))


def _weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(IN, 16)), nn.Tanh(), nn.Linear(16, 3))


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(IN, IN), nn.Tanh(), nn.Linear(IN, IN))
    model[2].weight = model[0].weight
    return model


ZOO: dict[str, Callable[[], nn.Module]] = {
    "in place": mlp_model,
    "written into": lambda: two(_written_into),
    "conv and batch norm": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3)
    ),
    "checkpoint, reentrant": lambda: Checkpointed(True),
    "checkpoint": lambda: Checkpointed(False),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "rnn": lambda: Recurrent(nn.RNN),
    "lstm cell": lambda: Called(lambda s, x: s.cell(x)[0], cell=nn.LSTMCell(IN, 6)),
    "weight norm": _weight_norm,
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(IN, 3)),
    "tied": _tied,
    "called twice": lambda: Called(lambda s, x: s.a(s.a(x).tanh()), a=nn.Linear(IN, IN)),
    "parameter list": lambda: Called(
        lambda s, x: sum(x @ w for w in s.ws), ws=nn.ParameterList([torch.ones(IN, 3), torch.ones(IN, 3)])
    ),
    "functional_call": lambda: two(_functional),
    "vmap": lambda: two(_vectorised),
    "vjp": lambda: two(_differentiated),
    "no grad in part": lambda: two(_partly_without_gradient),
    "complex": lambda: two(_complex),
    "sparse": lambda: two(_sparse),
    "integers": lambda: two(_integers),
    "row by row": lambda: two(_wrapped),
    "no rows": lambda: two(_out_of_shape),
    "nested": lambda: two(_nested),
    "autograd function": lambda: Called(lambda s, x: Squared.apply(x, s.p), p=torch.randn(IN, 3)),
    "complex parameter": lambda: Called(
        lambda s, x: (x.cfloat() @ s.p).abs(), p=torch.randn(IN, 3, dtype=torch.cfloat)
    ),
    "transformer": lambda: Called(
        lambda s, x: s.layer(x[:, None].expand(-1, 3, -1))[:, 0],
        layer=nn.TransformerEncoderLayer(IN, 2, 16, dropout=0.1, batch_first=True),
    ),
    "multi-head attention": lambda: Called(
        lambda s, x: s.layer(x[None], x[None], x[None])[0], layer=nn.MultiheadAttention(IN, 2, batch_first=True)
    ),
    "sparse gradient": lambda: Called(lambda s, x: s.e(x.abs().long()).sum(1), e=nn.Embedding(10, 3, sparse=True)),
    "bilinear": lambda: Called(lambda s, x: s.b(x, x), b=nn.Bilinear(IN, IN, 3)),
    "embedding bag": lambda: Called(lambda s, x: s.e(x.abs().long()), e=nn.EmbeddingBag(10, 3)),
    "own product": lambda: Called(lambda s, x: x @ s.p @ s.p.t(), p=torch.randn(IN, 3)),
    "double": lambda: Called(lambda s, x: s.a(x.double()), a=nn.Linear(IN, 3, dtype=torch.float64)),
}


def outcome(make: Callable[[], nn.Module], watched: bool) -> tuple[Tensor, list[Any], Tensor, Tracer | None]:
    """Output, gradients and random state of one seeded pass."""
    torch.manual_seed(0)
    model, x, tracer = make(), examples(), None
    if watched:
        with Tracer(model, keep_calls=True) as tracer:
            output = model(x)
            loss = output.pow(2).sum()
    else:
        output = model(x)
        loss = output.pow(2).sum()
    loss.backward()
    gradients = [None if p.grad is None else p.grad.to_dense() for p in model.parameters()]
    return output.detach(), [*gradients, *model.buffers()], torch.get_rng_state(), tracer


@pytest.mark.parametrize("name", ZOO)
def test_output_gradients_buffers_and_random_state_are_bit_identical(name: str):
    output, gradients, random_state, _ = outcome(ZOO[name], False)
    watched, watched_gradients, watched_state, tracer = outcome(ZOO[name], True)
    assert torch.equal(output, watched)
    assert len(gradients) == len(watched_gradients) > 0
    for one, other in zip(gradients, watched_gradients, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert torch.equal(random_state, watched_state)
    assert tracer is not None


def test_bit_identity_can_fail():
    output, *_ = outcome(ZOO["in place"], False)
    other, *_ = outcome(lambda: nn.Linear(IN, 3), True)
    assert not torch.equal(output[:, :3], other)


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(hooks)
        for m in model.modules()
        for hooks in (m._forward_hooks, m._forward_pre_hooks, m._forward_hooks_with_kwargs, m._backward_hooks)
    )


def test_hooks_and_mode_are_gone_after_the_block():
    model = mlp_model()
    with Tracer(model) as tracer:
        assert hooks_of(model) > 0
        model(examples())
    assert hooks_of(model) == 0
    seen = len(tracer.uses)
    tracer.uses.clear()
    model(examples())
    assert (seen > 0, tracer.uses) == (True, {})


def test_hooks_and_mode_are_gone_after_an_exception():
    model = Called(lambda s, x: s.w(x[:, :3]), w=nn.Linear(IN, OUT))
    with pytest.raises(RuntimeError, match="shapes"), Tracer(model):
        model(examples())
    assert hooks_of(model) == 0
    assert not torch.overrides._get_current_function_mode_stack()


def test_an_exception_caught_inside_the_forward_leaves_layers_right():
    def forward(s: Any, x: Tensor) -> Tensor:
        with contextlib.suppress(RuntimeError):
            s.a(x[:, :3])
        return s.b(x) * s.gain

    model = Called(forward, a=nn.Linear(IN, 3), b=nn.Linear(IN, 3), gain=torch.ones(3))
    tracer = traced(model, examples())
    assert only(tracer, "b.weight").layer == "b"
    assert only(tracer, "gain").layer == "(model)"


def test_the_users_own_hooks_stay():
    model, seen = mlp_model(), []
    model[0].register_forward_hook(lambda *args: seen.append(1))
    before = hooks_of(model)
    traced(model, examples())
    assert (hooks_of(model), seen) == (before, [1])


class Unlucky(Tensor):
    """A tensor that cannot be copied."""

    def clone(self, *args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("no copies")

    def detach(self) -> Tensor:
        raise RuntimeError("no copies")


def test_arguments_that_cannot_be_copied_do_not_stop_the_forward():
    model = Called(lambda s, x, extra: s.w(x), w=nn.Linear(IN, OUT))
    odd = torch.zeros(1).as_subclass(Unlucky)
    with Tracer(model, keep_calls=True):
        assert model(examples(), odd).shape == (4, OUT)


def test_what_raises_while_it_is_looked_at_is_counted_and_runs_all_the_same(monkeypatch: pytest.MonkeyPatch):
    def broken(*args: Any) -> Any:
        raise ValueError("looked too closely")

    monkeypatch.setattr(Tracer, "_see", broken)
    with Tracer(model := mlp_model()) as tracer:
        output = model(examples())
    assert output.shape == (4, 3)
    assert sum(tracer.skipped.values()) > 0
    assert any("ValueError" in what for what in tracer.skipped)


def test_what_is_kept_does_not_follow_later_changes():
    def forward(s: Any, x: Tensor) -> Tensor:
        h = x.clone()
        y = s.w(h)
        h.zero_()
        return y

    use = only(traced(Called(forward, w=nn.Linear(IN, OUT)), examples()))
    assert use.input_position is not None
    assert torch.equal(use.leaves[use.input_position], examples())


def test_gradients_are_those_at_the_operations_output():
    model = nn.Sequential(nn.Linear(IN, OUT), nn.Tanh(), nn.Linear(OUT, 3))
    with Tracer(model) as tracer:
        h = model[0](examples())
        h.retain_grad()
        loss = model[2](model[1](h)).pow(2).sum()
    loss.backward()
    assert torch.equal(only(tracer, "0.weight").gradient, h.grad)
    assert torch.equal(only(tracer, "0.bias").gradient, h.grad)


def test_recomputation_in_the_backward_is_not_looked_at():
    model = Checkpointed(False)
    with Tracer(model, keep_calls=True) as tracer:
        model(examples()).sum().backward()
    layers = {use.layer for use in chain(tracer.uses.values())}
    assert layers == {"first", "inner.0", "inner.2", "inner.4"}
    calls = {name for name in tracer.calls if tracer.calls[name].output is not None}
    assert "inner.4" in calls


def test_lazy_parameters_are_no_obstacle():
    model = nn.Sequential(nn.LazyLinear(OUT), nn.Linear(OUT, 3))
    tracer = traced(model, examples())
    assert ("1.weight", "linear") in tracer.uses


# Scalars behind sums, and logits on their way to what makes probabilities of them


def factors_of_two(function: Callable[[Any, Tensor], Tensor]) -> list[tuple[float, float, float]]:
    """The factors of two matrices, of which `function` makes something."""
    parts = {name: nn.Linear(IN, IN, bias=False) for name in ("a", "b")}
    tracer = traced(Called(function, **parts, bias=torch.ones(IN), scale=torch.tensor(0.5)), examples())
    return [factors(only(tracer, f"{name}.weight")) for name in ("a", "b")]


def _one_branch(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    return h + s.b((h + s.bias) * 0.5)


SUMMED: list[Any] = [
    pytest.param(lambda s, x: (s.a(x) + s.b(x)) * 0.5, [(1, 1, 0.5)] * 2, id="a sum"),
    pytest.param(lambda s, x: (s.a(x) * 3 + s.b(x)) * 0.5, [(1, 1, 1.5), (1, 1, 0.5)], id="a sum of scaled terms"),
    pytest.param(lambda s, x: torch.stack([s.a(x), s.b(x)]).mean(0) * 0.5, [(1, 1, 0.5)] * 2, id="a mean over views"),
    pytest.param(lambda s, x: torch.cat([s.a(x), s.b(x)], -1) * 0.5, [(1, 1, 0.5)] * 2, id="side by side"),
    pytest.param(lambda s, x: s.b((s.a(x) + x) * 0.5), [(1, 1, 0.5), (1, 1, 1)], id="a residual, and then a matrix"),
    pytest.param(_one_branch, [(1, 1, 1), (0.5, 1, 1)], id="one branch only"),
    pytest.param(lambda s, x: (s.a(x) + s.bias) * 0.5 + s.b(x), [(1, 1, 0.5), (1, 1, 1)], id="a bias of its own"),
    pytest.param(
        lambda s, x: s.a(x) * torch.full((IN,), 0.5) + s.b(x), [(1, 1, 0.5), (1, 1, 1)], id="all places alike"
    ),
    pytest.param(lambda s, x: s.a(x) * s.scale + s.b(x), [(1, 1, 0.5), (1, 1, 1)], id="a learned scalar"),
    pytest.param(lambda s, x: s.a(x) * s.b(x) * 0.5, [(1, 1, 1)] * 2, id="a product takes both up"),
]


@pytest.mark.parametrize(("function", "expected"), SUMMED)
def test_scalars_behind_sums_belong_to_every_term(function: Any, expected: list[tuple[float, float, float]]):
    found = factors_of_two(function)
    assert found == [pytest.approx(factors) for factors in expected]


def logits_of(function: Callable[[Tensor, Any], Tensor]) -> Tracer:
    def forward(s: Any, x: Tensor) -> Tensor:
        return function(s.q(x), s)[..., :1] * x

    parts = {name: nn.Linear(IN, IN) for name in ("q", "k")}
    x = torch.randn(2, 5, IN, generator=torch.Generator().manual_seed(0))
    model = Called(forward, **parts, table=torch.zeros(5, 5), temperature=torch.tensor(2.0))
    model.input = x
    return traced(model, x)


def scores(q: Tensor, s: Any) -> Tensor:
    return q @ s.k(s.input).transpose(-2, -1)


LOGITS: list[Any] = [
    pytest.param(lambda q, s: (scores(q, s) * 0.25 + s.table).softmax(-1), 0.25, id="a learned bias table"),
    pytest.param(lambda q, s: (scores(q, s) * s.temperature).softmax(-1), 2.0, id="a learned temperature"),
    pytest.param(lambda q, s: ((scores(q, s) * 0.5 / 30).tanh() * 30).softmax(-1), 0.5, id="soft-capped"),
    pytest.param(lambda q, s: (scores(q, s) * 0.25).log_softmax(-1).exp(), 0.25, id="log_softmax"),
    pytest.param(lambda q, s: (scores(q, s) * 0.25).sigmoid(), 0.25, id="sigmoid"),
    pytest.param(
        lambda q, s: torch.baddbmm(torch.zeros(1, 1, 1), q, s.k(s.input).transpose(1, 2), alpha=0.25).softmax(-1),
        0.25,
        id="baddbmm, alpha",
    ),
]


@pytest.mark.parametrize(("function", "scale"), LOGITS)
def test_logits_are_followed_to_what_makes_probabilities_of_them(function: Any, scale: float):
    (attention,) = logits_of(function).attentions
    assert (attention.scale, attention.head_size) == (pytest.approx(scale), IN)


def test_products_without_probabilities_are_kept_apart():
    tracer = logits_of(lambda q, s: scores(q, s).relu())
    assert tracer.attentions == []
    assert len(tracer.products) == 1


# What models from libraries do


def test_a_join_with_an_empty_tensor_hands_on_what_is_known():
    """The cache of keys is empty at first: attention must know all the same whose output it takes up."""

    def forward(s: Any, x: Tensor) -> Tensor:
        key = torch.cat([torch.tensor([]), s.k(x)], dim=-2)
        return torch.softmax(s.q(x) @ key.transpose(-1, -2), dim=-1)

    tracer = traced(Called(forward, q=nn.Linear(IN, IN), k=nn.Linear(IN, IN)), examples())
    assert not tracer.skipped
    (attention,) = tracer.attentions
    assert attention in only(tracer, "k.weight").feeds


def test_what_is_written_into_a_tensor_flows_on():
    def forward(s: Any, x: Tensor) -> Tensor:
        into = torch.zeros(len(x), IN)
        into[:, :] = s.k(x)
        return s.q(into)

    tracer = traced(Called(forward, q=nn.Linear(IN, IN), k=nn.Linear(IN, IN)), examples())
    assert only(tracer, "q.weight") in only(tracer, "k.weight").feeds


def test_a_token_that_is_written_into_a_sequence_is_followed():
    """As masked tokens are, in models that learn without labels."""

    def forward(s: Any, x: Tensor) -> Tensor:
        x = 1 * x
        x[torch.tensor([True, False, True, False])] = s.p
        return x

    model = Called(forward, p=torch.randn(IN))
    use = only(traced(model, examples()), "p")
    assert torch.equal(use.call({use.position: use.operand.of(model.p.detach(), {})}), model(examples()))


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this torch has no grouped_mm")
def test_a_grouped_product_sums_over_each_matrix():
    def forward(s: Any, x: Tensor) -> Tensor:
        return F.grouped_mm(x, s.p.transpose(-2, -1), offs=torch.tensor([1, 4], dtype=torch.int32))

    model = Called(forward, p=torch.randn(2, 16, IN))
    use = only(traced(model, examples()), "p")
    assert (use.fans, use.linear, use.alone) == ((IN, 16), True, True)
    assert torch.equal(use.call({use.position: use.operand.of(model.p.detach(), {})}), model(examples()))


@pytest.mark.parametrize(
    ("function", "curve"),
    [
        pytest.param(lambda s, x: x * -torch.exp(s.p.float()), "exp", id="-exp"),
        pytest.param(lambda s, x: x * F.softplus(s.p)[None], "softplus", id="a view of a softplus"),
        pytest.param(lambda s, x: x * (1.0 + s.p), "add", id="1 + p"),
        pytest.param(lambda s, x: x * (2 * torch.sigmoid(s.p) - 1), "sigmoid", id="of one"),
    ],
)
def test_a_function_of_every_coordinate_is_followed_to_where_it_acts(function: Any, curve: str):
    model = Called(function, p=torch.randn(IN))
    use = only(traced(model, examples()), "p")
    assert use.operand.curve == curve
    assert torch.equal(use.call({use.position: use.operand.of(model.p.detach(), {})}), model(examples()))


def test_a_function_of_a_matrix_is_not_taken_for_the_matrix():
    tracer = traced(Called(lambda s, x: F.linear(x, torch.tanh(s.p)), p=torch.randn(OUT, IN)), examples())
    use = only(tracer, "p")
    assert use.operand.made
    assert not use.alone
    assert not tracer.skipped


def test_matrices_that_are_picked_twice_and_turned_are_picked_again():
    def forward(s: Any, x: Tensor) -> Tensor:
        chosen = s.p[torch.tensor([2, 0, 1, 2, 0, 0])]
        chosen = 0.5 * chosen[torch.tensor([5, 0, 3, 1])].transpose(1, 2)
        return torch.bmm(x[:, None], chosen)

    model = Called(forward, p=torch.randn(3, OUT, IN))
    use = only(traced(model, examples()), "p")
    assert (use.fans, use.operand.factor) == ((IN, OUT), 0.5)
    assert torch.allclose(use.call({use.position: use.operand.of(model.p.detach(), {})}), model(examples()))


def test_a_copy_that_is_scaled_in_place_has_that_scale():
    model = Called(lambda s, x: F.linear(x, s.p.clone().mul_(0.25)), p=torch.randn(OUT, IN))
    use = only(traced(model, examples()), "p")
    assert use.operand.factor == 0.25
    assert torch.equal(use.call({use.position: use.operand.of(model.p.detach(), {})}), model(examples()))


def test_places_in_a_buffer_pick_rows_of_a_table():
    def forward(s: Any, x: Tensor) -> Tensor:
        return x + F.embedding(s.places, s.p) + s.q[s.places]

    model = Called(forward, p=torch.randn(5, IN), q=torch.randn(5, IN))
    model.register_buffer("places", torch.tensor([0, 3, 1, 1]))
    tracer = traced(model, examples())
    assert [only(tracer, name).fans for name in "pq"] == [(1, IN), (1, IN)]
