"""A later forward pass that is followed by the first one's calls: it gives what tracing it anew would give."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Called
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from coordcheck.models import transformer
from coordcheck.recording.graph.retracing import Retracer
from coordcheck.recording.graph.tracer import Tracer

IN, OUT = 8, 12


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def eager_attention(s: Any, x: Tensor) -> Tensor:
    logits = s.q(x) @ s.k(x).transpose(-2, -1) * IN**-0.5
    return s.v((logits + torch.ones_like(logits).triu(1) * -1e9).softmax(-1) @ x)


def tied(s: Any, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, s.p).relu() * 0.5, s.p.T)


def experts(s: Any, x: Tensor) -> Tensor:
    """Each row goes to one of three; an expert without rows is not called."""
    chosen = (x.abs().sum(-1) * s.spread).long() % 3
    out = torch.zeros(len(x), OUT)
    for index, expert in enumerate(s.several):
        rows = (chosen == index).nonzero().squeeze(-1)
        if len(rows):
            out = out.index_add(0, rows, expert(x[rows]))
    return s.w(out)


def called(function: Callable[..., Tensor], **parts: Any) -> nn.Module:
    torch.manual_seed(0)
    return Called(function, **{name: part() if callable(part) else part for name, part in parts.items()})


def linear(inputs: int = IN, outputs: int = OUT) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, outputs)


MODELS = {
    "linear layers": lambda: nn.Sequential(nn.Linear(IN, OUT), nn.ReLU(inplace=True), nn.Linear(OUT, OUT)),
    "norms": lambda: nn.Sequential(nn.Linear(IN, OUT), nn.LayerNorm(OUT), nn.RMSNorm(OUT), nn.BatchNorm1d(OUT)),
    "eager attention": lambda: called(eager_attention, q=linear(), k=linear(), v=linear(IN, IN)),
    "tied": lambda: called(tied, p=numbers(OUT, IN)),
    "scaled weights": lambda: called(lambda s, x: F.linear(x, s.p * 0.5) + s.b * 2, p=numbers(OUT, IN), b=numbers(OUT)),
    "a stack": lambda: called(lambda s, x: sum(F.linear(x, s.p[i]) for i in range(3)), p=numbers(3, OUT, IN)),
    "torch's attention": lambda: called(lambda s, x: s.w(x, x, x)[0], w=lambda: nn.MultiheadAttention(IN, 2)),
    "an LSTM": lambda: called(lambda s, x: s.w(x[None])[0], w=lambda: nn.LSTM(IN, OUT)),
    "checkpointed": lambda: called(lambda s, x: checkpoint(s.w, x, use_reentrant=False), w=linear()),
}


def first_and_later(
    model: nn.Module, x: Tensor, later: Tensor, *, sampled: bool = True, change: Callable[[], object] = lambda: None
) -> tuple[Tracer, Retracer, Tracer]:
    """The first trace, and a later pass that is followed, and once more traced anew."""

    def followed(kind: Any) -> Any:
        hook = model.register_forward_pre_hook(lambda module, args: kind.begin(args, {}))
        with torch.enable_grad():
            model(later)
        hook.remove()
        assert torch._C._len_torch_function_stack() == 0
        return kind

    with Tracer(model, keep_calls=True, sampled=sampled) as first:
        model(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * parameter.sign()
    change()
    retracer = followed(Retracer(model, first))
    return first, retracer, followed(Tracer(model, sampled=sampled))


def assert_alike(found: Retracer, expected: Tracer) -> None:
    assert found.uses.keys() == expected.uses.keys()
    for key, use in found.uses.items():
        position = use.input_position
        assert position == expected.uses[key].input_position
        if position is not None:
            torch.testing.assert_close(use.leaves[position], expected.uses[key].leaves[position], rtol=0, atol=0)
    assert {k: v.keys() for k, v in found.slices.items()} == {k: v.keys() for k, v in expected.slices.items()}
    for products in ("attentions", "products"):
        ours, theirs = getattr(found, products), getattr(expected, products)
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert (one.layer, one.operation) == (other.layer, other.operation)
            for name in ("logits", "query", "key"):
                torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("sampled", [True, False], ids=["sampled", "whole"])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_calls_give_what_a_trace_gives(name, sampled):
    x, later = numbers(40, IN), numbers(40, IN, seed=1)
    first, found, expected = first_and_later(MODELS[name](), x, later, sampled=sampled)
    assert found.same
    assert found.uses.keys() == first.uses.keys()
    assert found.uses
    assert_alike(found, expected)
    assert not found.skipped


@pytest.mark.parametrize("tokens", [(4, 33), (2, 8)], ids=["long", "short"])
def test_fused_attention_is_followed(tokens):
    torch.manual_seed(0)
    model, _ = transformer("SP", "adam", vocabulary=64, context=64)(64)
    x = torch.randint(64, tokens, generator=torch.Generator().manual_seed(0))
    _, found, expected = first_and_later(model, x, x.flip(0))
    assert found.same
    assert len(found.attentions) == 2
    assert_alike(found, expected)


# Calls that are not those of the first pass


def spread(model: Any, by: float) -> Callable[[], None]:
    def change() -> None:
        model.spread = by

    return change


def test_experts_without_examples_are_traced_from_there_on():
    several = lambda: nn.ModuleList(nn.Linear(IN, OUT) for _ in range(3))  # noqa: E731
    model = called(experts, several=several, w=linear(OUT, OUT))
    model.spread = 0.0  # all rows to the first
    x = numbers(40, IN)
    first, found, expected = first_and_later(model, x, x, change=spread(model, 10.0))
    assert not found.same
    assert len(first.uses) < len(found.uses)
    assert_alike(found, expected)


def one_after_the_other(s: Any, x: Tensor) -> Tensor:
    return sum((s.several[i](x * (i + 1)) for i in s.order), torch.zeros(()))


def scaled_weights(s: Any, x: Tensor) -> Tensor:
    return sum((F.linear(x * (i + 1), getattr(s, "pq"[i]) * 0.5) for i in s.order), torch.zeros(()))


def made_before(make: Callable[[Tensor], Tensor], *, whole: bool) -> Callable[[Any, Tensor], Tensor]:
    """Weights that are made of a parameter first, as a stack or one by one, and then used."""

    def forward(s: Any, x: Tensor) -> Tensor:
        weights = make(s.r) if whole else [make(s.r[0]), make(s.r[1])]
        return sum((F.linear(x * (i + 1), weights[i]) for i in s.order), torch.zeros(()))

    return forward


ORDERED = {"experts": one_after_the_other, "scaled weights": scaled_weights}
MADE = {"scaled": lambda p: p * 0.5, "cast": lambda p: p.bfloat16().float(), "cloned": torch.clone}
ORDERED |= {f"a stack, {name}": made_before(make, whole=True) for name, make in MADE.items()}
ORDERED |= {f"a pair, {name}": made_before(make, whole=False) for name, make in MADE.items()}


@pytest.mark.parametrize("name", ORDERED)
def test_weights_in_another_order_are_not_taken_for_each_other(name):
    several = lambda: nn.ModuleList(nn.Linear(IN, OUT) for _ in range(2))  # noqa: E731
    weights = {"p": numbers(OUT, IN), "q": numbers(OUT, IN, seed=1), "r": numbers(2, OUT, IN)}
    model = called(ORDERED[name], several=several, **weights)
    model.order = [0, 1]

    def swap() -> None:
        model.order = [1, 0]

    _, found, expected = first_and_later(model, numbers(40, IN), numbers(40, IN), change=swap)
    assert not found.same
    assert_alike(found, expected)


def test_a_parameter_in_new_memory_is_traced_anew():
    model = nn.Sequential(nn.Linear(IN, OUT), nn.Linear(OUT, OUT))

    def move() -> None:
        model[1].weight.data = model[1].weight.data.clone()

    _, found, expected = first_and_later(model, numbers(40, IN), numbers(40, IN, seed=1), change=move)
    assert not found.same
    assert_alike(found, expected)


@pytest.mark.parametrize("layers", [1, 3], ids=["fewer", "more"])
def test_another_number_of_calls(layers):
    model = called(
        lambda s, x: nn.Sequential(*s.several[: s.layers])(x).sum(),
        several=lambda: nn.ModuleList(nn.Linear(IN, IN) for _ in range(3)),
    )
    model.layers = 2
    x = numbers(40, IN)

    def other() -> None:
        model.layers = layers

    _, found, expected = first_and_later(model, x, x, change=other)
    assert not found.same
    assert_alike(found, expected)


def cached_mask(s: Any, x: Tensor) -> Tensor:
    """Attention whose mask is made by the first call alone."""
    if not hasattr(s, "mask"):
        s.mask = torch.ones(len(x), len(x)).triu(1) * -1e9
    q, k = s.q(x), s.k(x)
    return ((q @ k.T) * 0.5 + s.mask).softmax(-1) @ x


def temperature(s: Any, x: Tensor) -> Tensor:
    """A scalar that changes from call to call, before and after the product."""
    s.calls = getattr(s, "calls", 0) + 1
    q, k = s.q(x) * s.calls, s.k(x)
    return ((q @ k.T) * (0.5 / s.calls)).softmax(-1) @ x


def between(s: Any, x: Tensor) -> Tensor:
    """Another call between a product and its softmax, and between a weight that is made and its use."""
    s.calls = getattr(s, "calls", 0) + 1
    w = s.p * 0.5
    logits = s.q(x) @ s.k(x).T * 0.5
    if s.calls > 1:
        x = x.sin()
    return logits.softmax(-1) @ F.linear(x, w)


def again_and_again(s: Any, x: Tensor) -> Tensor:
    s.calls = getattr(s, "calls", 4) - 1
    for _ in range(s.calls):
        x = F.linear(x, s.p)
    return x


@pytest.mark.parametrize("function", [cached_mask, temperature, between, again_and_again])
def test_passes_that_change_on_the_way(function):
    square = function is again_and_again
    model = called(function, q=linear(), k=linear(), p=numbers(IN if square else OUT, IN))
    outer = nn.Sequential(nn.Linear(IN, IN), model)
    x, later = numbers(40, IN), numbers(40, IN, seed=1)
    with Tracer(outer, sampled=True) as first:
        outer(x)
    kept = dict(vars(model))

    def passed(tracer: Any) -> Any:
        vars(model).clear()
        vars(model).update(kept)
        hook = outer.register_forward_pre_hook(lambda module, args: tracer.begin(args, {}))
        outer(later)
        hook.remove()
        return tracer

    found, expected = passed(Retracer(outer, first)), passed(Tracer(outer, sampled=True))
    assert not found.same
    assert found.attentions or square
    assert_alike(found, expected)


# What the pass itself does not notice


class Counting(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*MODELS, "experts"])
def test_the_output_and_what_others_see_are_the_same(name):
    if name == "experts":
        model = called(experts, several=lambda: nn.ModuleList(nn.Linear(IN, OUT) for _ in range(3)), w=linear(OUT, OUT))
        model.spread = 0.0
    else:
        model = MODELS[name]()
    x = numbers(40, IN)
    with Tracer(model, sampled=True) as first:
        model(x)
    if name == "experts":
        model.spread = 10.0
    outputs, seen = [], []
    for follow in (False, True):
        torch.manual_seed(0)
        retracer = Retracer(model, first)
        hook = model.register_forward_pre_hook(lambda module, args, r=retracer: r.begin(args, {})) if follow else None
        with Counting() as counting:
            outputs.append(model(x))
        seen.append(counting.names)
        if hook is not None:
            hook.remove()
    assert torch.equal(*outputs)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("before", ["first", "differing"])
def test_a_call_that_raises_leaves_no_mode_and_no_hook(before):
    model = called(lambda s, x: s.w(s.then(x)), w=linear(), then=lambda: nn.Identity())
    x = numbers(4, IN)
    with Tracer(model, sampled=True) as first:
        model(x)

    def broken(module: nn.Module, args: Any) -> None:
        if before == "differing":
            torch.sin(x)
        raise ValueError("broken")

    hooks = [model.then.register_forward_pre_hook(broken)]
    retracer = Retracer(model, first)
    hooks.append(model.register_forward_pre_hook(lambda module, args: retracer.begin(args, {})))
    with pytest.raises(ValueError, match="broken"):
        model(x)
    for hook in hooks:
        hook.remove()
    assert torch._C._len_torch_function_stack() == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_arguments_that_cannot_be_looked_at_are_called_all_the_same(monkeypatch):
    model = nn.Linear(IN, OUT)
    x = numbers(4, IN)
    with Tracer(model, sampled=True) as first:
        expected = model(x)

    def broken(*args: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr("coordcheck.recording.graph.retracing.flattened", broken)
    monkeypatch.setattr(Tracer, "begin_within", broken)
    retracer = Retracer(model, first)
    hook = model.register_forward_pre_hook(lambda module, args: retracer.begin(args, {}))
    assert torch.equal(model(x), expected)
    hook.remove()
    assert not retracer.same
    assert retracer.uses == {}
    assert retracer.skipped


def test_another_thread_is_neither_followed_nor_ends_it():
    model, x = nn.Linear(IN, OUT), numbers(4, IN)
    with Tracer(model, sampled=True) as first:
        model(x)
    retracer = Retracer(model, first)
    retracer.begin((x,), {})
    thread = threading.Thread(target=lambda: (model(x), retracer.end()))
    thread.start()
    thread.join()
    assert retracer.uses == {}
    assert torch._C._len_torch_function_stack() == 1
    with nullcontext():
        model(x)
    assert retracer.same
    assert len(retracer.uses) == 2
    assert torch._C._len_torch_function_stack() == 0


def test_a_block_may_hold_the_loss_as_well():
    model, x = MODELS["norms"](), numbers(40, IN)

    def passed(tracer: Any) -> Any:
        with tracer:
            F.cross_entropy(model(x) * 0.5, torch.arange(40) % OUT)
        assert torch._C._len_torch_function_stack() == 0
        return tracer

    found = passed(Retracer(model, passed(Tracer(model))))
    assert found.same
    assert_alike(found, passed(Tracer(model)))
