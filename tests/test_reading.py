"""What is read off a graph that was written by hand: no model, no torch function is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coordcheck.recording.graph.arguments import Flat
from coordcheck.recording.graph.calls import Call, UseCall, Value
from coordcheck.recording.graph.modulation import modulated, weights
from coordcheck.recording.graph.operands import Operand
from coordcheck.recording.graph.pieces import Piece
from coordcheck.recording.graph.reading import MAKES_WEIGHTS, Reading
from coordcheck.recording.graph.roles import CallRole, role_of

N = 8


class Graph:
    """A pass through a function of that name after another."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.x = Value((4, N))

    def weight(self, name: str, *shape: int) -> Value:
        shape = shape or (N, N)
        strides = tuple(N ** (len(shape) - 1 - axis) for axis in range(len(shape)))
        return Value(shape, operand=Operand(name, shape, strides, 0), learns=True)

    def call(self, name: str, *leaves: Any, gives: tuple[int, ...] = (4, N), **facts: Any) -> Value:
        call = Call(name, leaves, Flat(len(leaves), ()), function=name)
        for fact, value in facts.items():
            setattr(call, fact, value)
        if role_of(call) is CallRole.USES:
            call.uses = [UseCall(call, position, operand) for position, operand in call.operands.items()]
        call.outputs = [Value(gives, call)]
        self.calls.append(call)
        return call.outputs[0]

    def linear(self, name: str, x: Value) -> Value:
        return self.call("linear", x, self.weight(name))

    def use(self, name: str) -> UseCall:
        return next(use for call in self.calls for use in call.uses if use.parameter == name)


def multipliers(graph: Graph, name: str) -> tuple[float, float]:
    Reading(graph.calls)
    use = graph.use(name)
    return use.upstream, use.downstream


@pytest.mark.parametrize(
    ("spelled", "factor"), [("mul", 3.0), ("__rmul__", 3.0), ("div", 0.5), ("neg", -1.0)], ids=lambda value: str(value)
)
def test_a_scalar_behind_a_matrix_is_its_multiplier(spelled: str, factor: float):
    graph = Graph()
    h = graph.call(spelled, graph.linear("w", graph.x), factor, factor=factor)
    graph.linear("v", h)
    assert multipliers(graph, "w") == (1.0, factor)
    assert multipliers(graph, "v") == (1.0, 1.0)


def test_a_scalar_behind_an_activation_belongs_to_what_follows():
    graph = Graph()
    h = graph.call("relu", graph.linear("w", graph.x))
    graph.linear("v", graph.call("mul", h, 3.0, factor=3.0))
    assert multipliers(graph, "w") == (1.0, 1.0)
    assert multipliers(graph, "v") == (3.0, 1.0)


def test_where_a_branch_has_a_scalar_of_its_own_the_matrix_keeps_what_comes_before_it():
    graph = Graph()
    h = graph.call("mul", graph.linear("w", graph.x), 0.5, factor=0.5)
    skip = graph.call("mul", h, 0.9, factor=0.9)
    graph.linear("u", graph.call("add", graph.linear("v", h), skip))
    assert multipliers(graph, "w") == (1.0, 0.5)
    assert multipliers(graph, "v") == (1.0, 1.0)


NORMS = ["rms_norm", "layer_norm", "normalize", "rms by hand", "layer by hand"]


def normed(graph: Graph, x: Value, how: str) -> Value:
    """x after a normalisation without gains."""
    row = {"gives": (4, 1)}
    if how == "layer by hand":
        x = graph.call("sub", x, graph.call("mean", x, -1, True, **row))
    if "by hand" in how:
        square = graph.call("pow", graph.call("to", x, "float64"), 2)
        root = graph.call("rsqrt", graph.call("add", graph.call("mean", square, -1, True, **row), 1e-6, **row), **row)
        return graph.call("__mul__", x, root)
    return graph.call(how, x)


@pytest.mark.parametrize("how", NORMS)
def test_a_scalar_in_front_of_a_normalisation_is_undone_by_it(how: str):
    graph = Graph()
    stream = graph.call("add", graph.linear("w", graph.x), graph.linear("u", graph.x))
    graph.linear("v", normed(graph, graph.call("mul", stream, 0.25, factor=0.25), how))
    assert multipliers(graph, "w")[1] == multipliers(graph, "u")[1] == 1.0
    assert multipliers(graph, "v") == (1.0, 1.0)


@pytest.mark.parametrize("how", NORMS)
def test_the_scalar_of_one_term_of_what_is_normalized_is_not_undone(how: str):
    graph = Graph()
    branch = graph.call("mul", graph.linear("w", graph.x), 0.25, factor=0.25)
    graph.linear("v", normed(graph, graph.call("add", branch, graph.linear("u", graph.x)), how))
    assert multipliers(graph, "w")[1] == 0.25
    assert multipliers(graph, "u")[1] == 1.0


def test_a_gate_is_no_normalisation():
    graph = Graph()
    h = graph.call("mul", graph.linear("w", graph.x), 0.25, factor=0.25)
    gate = graph.call("sigmoid", graph.call("linear", h, graph.weight("gate", 1, N), gives=(4, 1)), gives=(4, 1))
    graph.linear("v", graph.call("mul", h, gate))
    assert multipliers(graph, "w")[1] == 0.25


def test_a_row_that_is_weighed_by_its_own_mean_is_not_normalized():
    graph = Graph()
    h = graph.call("mul", graph.linear("w", graph.x), 0.25, factor=0.25)
    mean = graph.call("sigmoid", graph.call("mean", h, -1, True, gives=(4, 1)), gives=(4, 1))
    graph.linear("v", graph.call("mul", h, mean))
    assert multipliers(graph, "w")[1] == 0.25


def test_a_sum_hands_a_scalar_on_to_all_its_terms():
    graph = Graph()
    both = graph.call("add", graph.linear("w", graph.x), graph.linear("u", graph.x))
    graph.linear("v", graph.call("mul", both, 0.5, factor=0.5))
    assert multipliers(graph, "w")[1] == multipliers(graph, "u")[1] == 0.5


def test_a_matrix_feeds_those_that_take_it_up_next():
    graph = Graph()
    h = graph.call("relu", graph.linear("a", graph.x))
    h = graph.call("layer_norm", graph.linear("b", h), (N,), graph.weight("g", N))
    graph.linear("c", h)
    Reading(graph.calls)
    assert graph.use("a").fed == {graph.use("b")}
    assert graph.use("b").fed == {graph.use("c")}
    assert graph.use("c").fed == set()


@pytest.mark.parametrize("cap", ["masked_fill", "tanh", ""])
def test_a_product_that_a_softmax_takes_up_is_an_attention(cap: str):
    graph = Graph()
    q, k = graph.linear("q", graph.x), graph.linear("k", graph.x)
    scores = graph.call("matmul", q, graph.call("transpose", k, 0, 1, gives=(N, 4), view=True), gives=(4, 4))
    scores = graph.call("mul", scores, 0.25, factor=0.25, gives=(4, 4))
    scores = graph.call(cap, scores, gives=(4, 4)) if cap else scores
    graph.call("softmax", scores, gives=(4, 4))
    reading = Reading(graph.calls)
    (attention,) = reading.attentions
    assert (attention.scale, attention.head_size) == (0.25, N)
    assert graph.use("q").fed == graph.use("k").fed == {attention}
    assert graph.use("q").downstream == 1.0


def test_a_product_that_none_takes_up_is_none():
    graph = Graph()
    graph.call("matmul", graph.linear("q", graph.x), graph.linear("k", graph.x), gives=(4, 4))
    reading = Reading(graph.calls)
    assert not reading.attentions
    assert len(reading.products) == 1


def test_channels_that_are_split_are_blocks_of_their_matrix():
    graph = Graph()
    qkv = graph.call("linear", graph.x, graph.weight("qkv", 3 * N, N), gives=(4, 3 * N))
    graph.call("chunk", qkv, 3, -1, view=True, function=torch.chunk)
    graph.calls[-1].outputs = [Value((4, N), graph.calls[-1]) for _ in range(3)]
    Reading(graph.calls)
    assert graph.use("qkv").pieces == (N, N, N)


def test_channels_that_take_turns_are_blocks_of_their_matrix():
    graph = Graph()
    both = graph.call("linear", graph.x, graph.weight("w", 2 * N, N), gives=(4, 2 * N))
    both = graph.call("add", both, graph.weight("b", 2 * N), gives=(4, 2 * N))
    for first in (0, 1):
        place = Ellipsis, slice(first, None, 2)
        graph.call("__getitem__", both, place, view=True, function=torch.Tensor.__getitem__)
    Reading(graph.calls)
    assert graph.use("w").parts == (Piece(0, ((N, 2),)), Piece(1, ((N, 2),)))


def test_channels_of_heads_that_take_turns_are_blocks_of_their_matrix():
    graph = Graph()
    both = graph.call("linear", graph.x, graph.weight("w", 4 * N, N), gives=(4, 4 * N))
    heads = graph.call("view", both, (4, 2, 2, N), gives=(4, 2, 2, N), view=True, function=torch.Tensor.view)
    graph.call("unbind", heads, 2, view=True, function=torch.unbind)
    Reading(graph.calls)
    assert graph.use("w").parts == (Piece(0, ((2, 2 * N), (N, 1))), Piece(N, ((2, 2 * N), (N, 1))))


def test_some_channels_alone_are_no_blocks():
    graph = Graph()
    both = graph.call("linear", graph.x, graph.weight("w", 2 * N, N), gives=(4, 2 * N))
    for place in ((Ellipsis, slice(0, N)), (Ellipsis, slice(1, N + 1))):
        graph.call("__getitem__", both, place, view=True, function=torch.Tensor.__getitem__)
    Reading(graph.calls)
    assert graph.use("w").parts == ()


def changed(graph: Graph, name: str, data: Value, gives: tuple[int, ...]) -> Value:
    """What a function makes of a parameter and data."""
    found = graph.call(name, graph.weight("w"), data, gives=gives)
    found.modulated = modulated(graph.calls[-1], gives)
    return found


def test_a_parameter_times_a_style_is_a_weight_of_what_takes_it():
    graph = Graph()
    weight = changed(graph, "mul", Value((4, 1, N)), (4, N, N))
    assert weight.modulated == {"w"}
    assert weights(Call("bmm", [Value((4, 1, N)), weight])) == {1: weight}
    assert weights(Call("conv1d", [Value((1, 4 * N, 3)), weight])) == {1: weight}
    assert weights(Call("linear", [weight, Value((N, N))])) == {}  # an input


def test_a_table_added_to_activations_is_no_weight():
    graph = Graph()
    sum_ = changed(graph, "add", Value((4, N, N)), (4, N, N))
    assert weights(Call("matmul", [sum_, Value((4, N, N))])) == {}
    assert modulated(Call("add", [sum_, Value((4, N, N))]), (4, N, N)) == frozenset()


def test_a_weight_that_a_gradient_changed_is_one_for_all():
    graph = Graph()
    weight = changed(graph, "sub", Value((N, N)), (N, N))
    assert weights(Call("matmul", [graph.x, weight])) == {1: weight}


def test_a_matrix_whose_output_is_a_weight_is_not_judged():
    graph = Graph()
    made = graph.call("linear", Value((N,)), graph.weight("w", N * N, N), gives=(N * N,))
    made = graph.call("view", made, (N, N), gives=(N, N), view=True, function=torch.Tensor.view)
    graph.call("linear", graph.x, made)
    Reading(graph.calls)
    assert graph.use("w").unjudged == MAKES_WEIGHTS


@pytest.mark.parametrize(
    ("leaves", "name", "role"),
    [
        (("x", "w"), "linear", CallRole.USES),
        (("w",), "exp", CallRole.DERIVES),
        (("w", "x"), "type_as", CallRole.DERIVES),
        (("table",), "cos", CallRole.COMPUTES),
        (("x", "table"), "mul", CallRole.FOLLOWS),
        (("stack", "x"), "__getitem__", CallRole.PICKS),
    ],
)
def test_the_role_of_a_call_is_that_of_its_arguments(leaves: tuple[str, ...], name: str, role: CallRole):
    graph = Graph()
    given = {
        "x": graph.x,
        "w": graph.weight("w"),
        "stack": graph.weight("stack", 2, N, N),
        "table": Value((N, N), data=False),
    }
    assert role_of(Call(name, [given[leaf] for leaf in leaves])) is role


def test_a_call_that_cannot_be_read_is_counted_and_the_rest_is_read():
    graph = Graph()
    graph.call("scaled_dot_product_attention", graph.x)  # without keys
    graph.linear("w", graph.call("mul", graph.x, 2.0, factor=2.0))
    reading = Reading(graph.calls)
    assert list(reading.skipped) == ["scaled_dot_product_attention (KeyError)"]
    assert graph.use("w").upstream == 2.0


def test_an_exit_has_the_scalar_that_follows_it_outside():
    graph = Graph()
    out = graph.linear("w", graph.x)
    graph.linear("v", graph.call("mul", out, 3.0, factor=3.0))
    assert Reading(graph.calls).outside([("head", out)]) == {"head": 3.0}
