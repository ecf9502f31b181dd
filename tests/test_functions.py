"""What a function sums over: fans of every kind of matrix product, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coordcheck.recording.graph import fans, functions
from coordcheck.recording.graph.tracer import Tracer


class Called(nn.Module):
    """A module whose one parameter `weight` is used by a function of (weight, x)."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.randn(*shape)), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.weight, x)


def traced_fans(module: nn.Module, x: Tensor, name: str = "weight") -> fans.Fans | None:
    """The fans of a module's parameter in the one use that a tracer sees."""
    with Tracer(module) as tracer:
        module(x)
    (use,) = (use for (parameter, _), use in tracer.uses.items() if parameter == name)
    return use.fans


def counted_fans(module: nn.Module, x: Tensor) -> fans.Fans:
    """Fan-in: the largest number of input coordinates that an output coordinate depends on.

    Fan-out: the number of output coordinates over the number of input groups that no axis is summed for.
    """
    jacobian = torch.autograd.functional.jacobian(module, x)  # (*output, *input)
    outputs = module(x).numel()
    fan_in = int((jacobian.reshape(outputs, -1) != 0).sum(1).max())
    return fans.Fans(fan_in, outputs)


# Closed forms


@pytest.mark.parametrize(
    ("module", "x", "expected"),
    [
        (nn.Linear(8, 24), torch.zeros(4, 8), (8, 24)),
        (nn.Conv1d(8, 24, 3), torch.zeros(2, 8, 9), (24, 24)),
        (nn.Conv2d(8, 24, 3), torch.zeros(2, 8, 9, 9), (72, 24)),
        (nn.Conv2d(8, 24, (1, 5)), torch.zeros(2, 8, 9, 9), (40, 24)),
        (nn.Conv3d(4, 6, 2), torch.zeros(2, 4, 5, 5, 5), (32, 6)),
        (nn.Conv2d(8, 24, 3, groups=4), torch.zeros(2, 8, 9, 9), (18, 24)),
        (nn.Conv1d(8, 8, 3, groups=8), torch.zeros(2, 8, 9), (3, 8)),
        (nn.Conv2d(8, 24, 3, padding=1, padding_mode="circular"), torch.zeros(2, 8, 9, 9), (72, 24)),
        (nn.ConvTranspose1d(8, 24, 3), torch.zeros(2, 8, 9), (24, 24)),
        (nn.ConvTranspose2d(8, 24, 3), torch.zeros(2, 8, 9, 9), (72, 24)),
        (nn.Embedding(100, 24), torch.zeros(2, 9, dtype=torch.int64), (1, 24)),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
def test_fans_of_modules_are_their_closed_forms(module: nn.Module, x: Tensor, expected: tuple[int, int]):
    assert traced_fans(module, x) == expected


@pytest.mark.parametrize(
    ("module", "x", "expected"),
    [
        (nn.ConvTranspose1d(8, 24, 3, groups=4), torch.zeros(2, 8, 9), (6, 24)),
        (nn.ConvTranspose2d(8, 24, 3, groups=4), torch.zeros(2, 8, 9, 9), (18, 24)),
        (nn.ConvTranspose2d(8, 8, 3, groups=8), torch.zeros(2, 8, 9, 9), (9, 8)),
        (nn.ConvTranspose2d(8, 24, 3, dilation=2), torch.zeros(2, 8, 9, 9), (72, 24)),
        (nn.ConvTranspose2d(8, 24, 3, groups=4, dilation=2), torch.zeros(2, 8, 9, 9), (18, 24)),
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
def test_fans_of_grouped_and_dilated_transposed_convolutions(module: nn.Module, x: Tensor, expected: tuple[int, int]):
    assert traced_fans(module, x) == expected


PRODUCTS: list[Any] = [
    pytest.param(lambda w, x: F.linear(x, w), (24, 8), (4, 8), (8, 24), id="F.linear"),
    pytest.param(lambda w, x: x @ w, (8, 24), (4, 8), (8, 24), id="x @ W"),
    pytest.param(lambda w, x: x @ w.t(), (24, 8), (4, 8), (8, 24), id="x @ W.t()"),
    pytest.param(lambda w, x: x @ w.T, (24, 8), (4, 8), (8, 24), id="x @ W.T"),
    pytest.param(lambda w, x: x @ w.transpose(0, 1), (24, 8), (4, 8), (8, 24), id="x @ W.transpose"),
    pytest.param(lambda w, x: w @ x, (24, 8), (8, 4), (8, 24), id="W @ x"),
    pytest.param(lambda w, x: torch.matmul(x, w), (8, 24), (2, 4, 8), (8, 24), id="torch.matmul"),
    pytest.param(lambda w, x: torch.mm(x, w), (8, 24), (4, 8), (8, 24), id="torch.mm"),
    pytest.param(lambda w, x: torch.mv(w, x), (24, 8), (8,), (8, 24), id="torch.mv"),
    pytest.param(lambda w, x: x @ w, (8,), (4, 8), (8, 1), id="x @ vector"),
    pytest.param(lambda w, x: torch.bmm(x, w), (3, 8, 24), (3, 4, 8), (8, 24), id="bmm of experts"),
    pytest.param(lambda w, x: torch.bmm(w, x), (3, 24, 8), (3, 8, 4), (8, 24), id="bmm, experts first"),
    pytest.param(lambda w, x: x @ w, (3, 8, 24), (3, 4, 8), (8, 24), id="x @ experts"),
    pytest.param(lambda w, x: torch.addmm(torch.zeros(24), x, w), (8, 24), (4, 8), (8, 24), id="addmm"),
    pytest.param(lambda w, x: torch.addmm(torch.zeros(4, 24), x, w), (8, 24), (4, 8), (8, 24), id="addmm, residual"),
    pytest.param(lambda w, x: torch.baddbmm(torch.zeros(3, 1, 24), x, w), (3, 8, 24), (3, 4, 8), (8, 24), id="baddbmm"),
    pytest.param(lambda w, x: torch.einsum("bi,io->bo", x, w), (8, 24), (4, 8), (8, 24), id="einsum"),
    pytest.param(lambda w, x: torch.einsum("oi,bi->bo", w, x), (24, 8), (4, 8), (8, 24), id="einsum, W first"),
    pytest.param(lambda w, x: torch.einsum("bi,io", x, w), (8, 24), (4, 8), (8, 24), id="einsum, implicit"),
    pytest.param(lambda w, x: torch.einsum("...i,io->...o", x, w), (8, 24), (2, 4, 8), (8, 24), id="einsum, ellipsis"),
    pytest.param(lambda w, x: torch.einsum("ebi,eio->ebo", x, w), (3, 8, 24), (3, 4, 8), (8, 24), id="einsum, experts"),
    pytest.param(
        lambda w, x: torch.einsum("bi,eoi->beo", x, w), (3, 24, 8), (4, 8), (8, 72), id="einsum, every expert"
    ),
    pytest.param(
        lambda w, x: torch.einsum("bti,ihd->bthd", x, w), (8, 3, 4), (2, 5, 8), (8, 12), id="einsum, split heads"
    ),
    pytest.param(
        lambda w, x: torch.einsum("bthd,hdo->bto", x, w), (3, 4, 8), (2, 5, 3, 4), (12, 8), id="einsum, merged heads"
    ),
    pytest.param(lambda w, x: F.linear(x, w[1]), (3, 24, 8), (4, 8), (8, 24), id="a slice of experts"),
    pytest.param(lambda w, x: F.linear(x, w[:, :8]), (24, 16), (4, 8), (8, 24), id="some columns"),
    pytest.param(lambda w, x: F.linear(x, w.view(24, 8)), (3, 8, 8), (4, 8), (8, 24), id="a view"),
    pytest.param(lambda w, x: F.linear(x, w * 0.5), (24, 8), (4, 8), (8, 24), id="W * scale"),
]


@pytest.mark.parametrize(("function", "shape", "inputs", "expected"), PRODUCTS)
def test_fans_of_functional_products_are_their_closed_forms(
    function: Any, shape: tuple[int, ...], inputs: tuple[int, ...], expected: tuple[int, int]
):
    assert traced_fans(Called(function, *shape), torch.randn(inputs)) == expected


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        pytest.param(lambda w, x: torch.linalg.matmul(x, w), (8, 24), id="linalg.matmul"),
        pytest.param(lambda w, x: torch.tensordot(x, w, dims=([1], [0])), (8, 24), id="tensordot"),
        pytest.param(lambda w, x: torch.matmul(other=w, input=x), (8, 24), id="keywords in another order"),
    ],
)
def test_fans_of_rarer_products(function: Any, shape: tuple[int, ...]):
    assert traced_fans(Called(function, *shape), torch.randn(4, 8)) == (8, 24)


LOOKUPS: list[Any] = [
    pytest.param(lambda w, x: F.embedding_bag(x, w), (100, 24), torch.zeros(4, 3, dtype=torch.int64), id="bag"),
    pytest.param(lambda w, x: w[x], (100, 24), torch.arange(6), id="W[ids]"),
    pytest.param(lambda w, x: torch.index_select(w, 0, x), (100, 24), torch.arange(6), id="index_select"),
]


@pytest.mark.parametrize(("function", "shape", "x"), LOOKUPS)
def test_a_table_that_is_looked_up_has_a_fan_in_of_one(function: Any, shape: tuple[int, ...], x: Tensor):
    assert traced_fans(Called(function, *shape), x) == (1, 24)


JOINED: list[Any] = [
    pytest.param(lambda w, x: torch.cat([w.expand(2, -1, -1), x], 1), id="class token, cat"),
    pytest.param(lambda w, x: torch.where(x[..., :1] > 0, w, x), id="mask token, where"),
    pytest.param(lambda w, x: torch.maximum(x, w), id="maximum"),
    pytest.param(lambda w, x: torch.lerp(x, torch.ones_like(x), w), id="lerp"),
    pytest.param(lambda w, x: torch.addcmul(x, w, x), id="addcmul"),
    pytest.param(lambda w, x: x**w, id="pow"),
]


@pytest.mark.parametrize("function", JOINED)
def test_tokens_and_elementwise_tables_have_no_fans(function: Any):
    assert traced_fans(Called(function, 1, 1, 8), torch.rand(2, 5, 8)) is None


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda w, x: x + w, id="add"),
        pytest.param(lambda w, x: x - w, id="sub"),
        pytest.param(lambda w, x: w - x, id="from"),
        pytest.param(lambda w, x: x * w, id="mul"),
        pytest.param(lambda w, x: x / w, id="div"),
        pytest.param(lambda w, x: x.clone().mul_(w), id="mul_"),
    ],
)
def test_elementwise_functions_have_no_fans(function: Any):
    assert traced_fans(Called(function, 5, 8), torch.rand(2, 5, 8)) is None


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Linear(8, 24), torch.zeros(4, 8)),
        (nn.Conv2d(8, 24, 3), torch.zeros(2, 8, 9, 9)),
        (nn.ConvTranspose2d(8, 24, 3), torch.zeros(2, 8, 9, 9)),
        (nn.LayerNorm(8), torch.randn(4, 8)),
        (nn.BatchNorm1d(8), torch.randn(4, 8)),
    ],
)
def test_a_bias_has_no_fans(module: nn.Module, x: Tensor):
    assert traced_fans(module, x, "bias") is None


@pytest.mark.parametrize("norm", [nn.LayerNorm((5, 8)), nn.RMSNorm((5, 8)), nn.GroupNorm(1, 5)])
def test_a_norm_has_no_fans_whatever_its_shape(norm: nn.Module):
    assert traced_fans(norm, torch.randn(2, 5, 8)) is None


def test_recurrent_weights_are_out_by_in():
    with Tracer(lstm := nn.LSTM(8, 6)) as tracer:
        lstm(torch.randn(5, 2, 8))
    fans = {name: use.fans for (name, _), use in tracer.uses.items()}
    assert fans == {"weight_ih_l0": (8, 24), "weight_hh_l0": (6, 24), "bias_ih_l0": None, "bias_hh_l0": None}


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Linear(5, 3), torch.randn(5)),
        (Called(lambda w, x: x @ w, 5, 3), torch.randn(5)),
        (Called(lambda w, x: w @ x, 3, 5), torch.randn(5)),
        (Called(lambda w, x: torch.einsum("i,ihd->hd", x, w), 5, 2, 3), torch.randn(5)),
        (Called(lambda w, x: torch.einsum("hd,hdo->o", x, w), 2, 3, 4), torch.randn(2, 3)),
    ],
)
def test_fans_are_what_the_jacobian_counts(module: nn.Module, x: Tensor):
    """On one example each output coordinate depends on fan-in inputs, and there are fan-out outputs."""
    assert traced_fans(module, x) == counted_fans(module, x)


# Einsum equations


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ij,jk->ik", (["ij", "jk"], "ik")),
        ("ij,jk", (["ij", "jk"], "ik")),
        ("ba,ac", (["ba", "ac"], "bc")),
        ("ii", (["ii"], "")),
        ("i,j", (["i", "j"], "ij")),
        ("ij , jk -> i k", (["ij", "jk"], "ik")),
        ("aB,Bc", (["aB", "Bc"], "ac")),
        ("ij,ij->", (["ij", "ij"], "")),
    ],
)
def test_an_equation_is_read_as_torch_reads_it(text: str, expected: tuple[list[str], str]):
    assert fans.equation(text) == expected


AXES = {"a": 2, "b": 3, "c": 5, "d": 7}


@st.composite
def equations(draw: Any) -> tuple[str, str, str]:
    """The terms of two operands and of the output of an einsum with no repeated axis in a term."""
    left = draw(st.permutations(sorted(draw(st.sets(st.sampled_from("abcd"), min_size=1)))))
    right = draw(st.permutations(sorted(draw(st.sets(st.sampled_from("abcd"), min_size=2)))))
    both = sorted({*left, *right})
    output = draw(st.permutations(draw(st.lists(st.sampled_from(both), unique=True))))
    return "".join(left), "".join(right), "".join(output)


@given(equations(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_fans_of_any_einsum_multiply_out(terms: tuple[str, str, str], weight_first: bool):
    """Fan-in: axes of the weight that are summed; fan-out: kept ones that the input has not."""
    left, right, output = terms
    assume(any(axis in right for axis in left))
    weight, x = torch.randn([AXES[a] for a in right]), torch.randn([AXES[a] for a in left])
    text = f"{right},{left}->{output}" if weight_first else f"{left},{right}->{output}"
    module = Called(lambda w, x: torch.einsum(text, *((w, x) if weight_first else (x, w))), *weight.shape)
    fan_in = fan_out = shared = 1
    for axis in right:
        fan_in *= AXES[axis] if axis not in output else 1
        fan_out *= AXES[axis] if axis in output and axis not in left else 1
        shared *= AXES[axis] if axis in output and axis in left else 1
    assert traced_fans(module, x) == (fan_in, fan_out)
    assert fan_in * fan_out * shared == weight.numel()


@given(equations())
@settings(max_examples=60, deadline=None)
def test_an_implicit_output_is_the_one_torch_computes(terms: tuple[str, str, str]):
    left, right, _ = terms
    x, y = (torch.randn([AXES[a] for a in term]) for term in (left, right))
    _, output = fans.equation(f"{left},{right}")
    assert torch.einsum(f"{left},{right}", x, y).shape == tuple(AXES[axis] for axis in output)


# Which functions act linearly


@pytest.mark.parametrize("name", ["linear", "conv2d", "embedding", "matmul", "einsum", "mul", "add", "__rmul__"])
def test_products_and_sums_are_linear(name: str):
    assert functions.is_linear(name)


@pytest.mark.parametrize("name", ["layer_norm", "lstm", "relu", "softmax", "pow", "scaled_dot_product_attention"])
def test_other_functions_are_not_taken_for_linear(name: str):
    assert not functions.is_linear(name)


def test_a_quotient_is_not_linear_in_what_it_divides_by():
    class Divided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.full((8,), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            return x / self.gain

    with Tracer(model := Divided()) as tracer:
        model(torch.randn(4, 8))
    (use,) = tracer.uses.values()
    assert not use.linear


def test_only_torchs_own_compositions_are_looked_into():
    assert functions.inside(F.multi_head_attention_forward)
    assert not functions.inside(F.linear)
    assert not functions.inside(F.scaled_dot_product_attention)


def test_a_function_without_a_name_has_one_all_the_same():
    class Nameless:
        def __repr__(self) -> str:
            return "nameless"

    assert functions.name_of(Nameless()) == "nameless"
    assert functions.name_of(torch.matmul) == "matmul"
