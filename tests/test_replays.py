"""A parameter's use called again: own updates and inherited changes against the same differences by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Called
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from coordcheck.recording.graph.fans import Channels
from coordcheck.recording.graph.operands import Operand
from coordcheck.recording.graph.pieces import Piece
from coordcheck.recording.graph.tracer import Tracer
from coordcheck.recording.updates.replays import Block, FunctionReplay, ModuleReplay, NotReplayed, blocks

IN, OUT = 8, 12


def examples(*shape: int) -> Tensor:
    return torch.randn(shape or (4, IN), generator=torch.Generator().manual_seed(0))


def initial_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def replayed(model: nn.Module, name: str, x: Any) -> tuple[FunctionReplay, Tracer, dict[str, Tensor]]:
    """The replay of a parameter's one function."""
    initial = initial_of(model)
    with Tracer(model, keep_calls=True) as tracer:
        output = model(x)
        (output[0] if isinstance(output, tuple) else output).pow(2).mean()
    (use,) = (use for (parameter, _), use in tracer.uses.items() if parameter == name)
    return FunctionReplay(use, initial), tracer, initial


def moved(value: Tensor, by: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    return (value.double() + by * value.abs().mean().double().clamp(min=1e-3) * noise).to(value.dtype)


def updated(replay: FunctionReplay | ModuleReplay, now: Tensor) -> Tensor:
    """The own update to new values of the parameter."""
    name = replay._use.parameter if isinstance(replay, FunctionReplay) else replay._name
    return replay.own_update(now, now - replay._initial[name])


def by_hand(model: nn.Module, name: str, x: Any, now: Tensor) -> Tensor:
    """f(p_t; x_0) - f(p_0; x_0) of the whole model, in double precision, on copies of its buffers."""

    def output(values: dict[str, Tensor]) -> Tensor:
        state = {**dict(model.named_parameters()), **values}
        state = {n: t.detach().double() if t.is_floating_point() else t for n, t in state.items()}
        buffers = {n: b.clone().double() if b.is_floating_point() else b.clone() for n, b in model.named_buffers()}
        wide = x.double() if x.is_floating_point() else x
        with torch.no_grad():
            found = functional_call(model, {**state, **buffers}, (wide,))
        return found[0] if isinstance(found, tuple) else found

    return output({name: now}) - output({})


MODELS: list[Any] = [
    pytest.param(nn.Linear(IN, OUT), "weight", examples(), id="linear weight"),
    pytest.param(nn.Linear(IN, OUT), "bias", examples(), id="linear bias"),
    pytest.param(nn.Conv1d(2, 6, 3), "weight", examples(4, 2, 7), id="conv1d weight"),
    pytest.param(nn.Conv2d(2, 6, 3, groups=2), "weight", examples(4, 2, 5, 5), id="grouped conv2d weight"),
    pytest.param(nn.ConvTranspose2d(2, 6, 3), "weight", examples(4, 2, 5, 5), id="transposed conv2d weight"),
    pytest.param(nn.Embedding(10, OUT), "weight", torch.arange(10), id="embedding"),
    pytest.param(nn.LayerNorm(IN), "weight", examples(), id="layer norm weight"),
    pytest.param(nn.LayerNorm(IN), "bias", examples(), id="layer norm bias"),
    pytest.param(nn.RMSNorm(IN), "weight", examples(), id="rms norm"),
    pytest.param(nn.GroupNorm(2, IN), "weight", examples(), id="group norm weight"),
    pytest.param(nn.GroupNorm(2, IN), "bias", examples(), id="group norm bias"),
    pytest.param(nn.LayerNorm((2, IN)), "weight", examples(4, 2, IN), id="layer norm over two axes"),
    pytest.param(nn.RMSNorm(IN), "weight", examples(IN), id="rms norm of one row"),
    pytest.param(
        Called(lambda s, x: F.layer_norm(x, (IN,), s.p, 0.3 * x[0].detach()), p=examples(IN)),
        "p",
        examples(),
        id="gain beside a bias that is no parameter",
    ),
    pytest.param(
        Called(lambda s, x: F.group_norm(x, 2, s.p, 0.3 * x[0].detach()), p=examples(IN)),
        "p",
        examples(),
        id="group norm's gain beside a bias that is no parameter",
    ),
    pytest.param(
        Called(lambda s, x: F.layer_norm(x, (IN,), 0.3 * x[0].detach(), s.p), p=examples(IN)),
        "p",
        examples(),
        id="bias beside a gain that is no parameter",
    ),
    pytest.param(
        Called(lambda s, x: F.layer_norm(x, (IN,), 1 + s.p, None), p=examples(IN)), "p", examples(), id="1 + gain"
    ),
    pytest.param(nn.BatchNorm1d(IN), "weight", examples(), id="batch norm weight"),
    pytest.param(nn.BatchNorm1d(IN), "bias", examples(), id="batch norm bias"),
    pytest.param(nn.BatchNorm2d(2), "weight", examples(4, 2, 5, 5), id="batch norm 2d"),
    pytest.param(nn.BatchNorm1d(IN).eval(), "weight", examples(), id="batch norm, eval"),
    pytest.param(nn.LSTM(IN, 6), "weight_ih_l0", examples(5, 2, IN), id="lstm, input"),
    pytest.param(nn.LSTM(IN, 6), "weight_hh_l0", examples(5, 2, IN), id="lstm, hidden"),
    pytest.param(nn.LSTM(IN, 6), "bias_ih_l0", examples(5, 2, IN), id="lstm, bias"),
    pytest.param(nn.GRU(IN, 6, num_layers=2), "weight_ih_l1", examples(5, 2, IN), id="gru, second layer"),
    pytest.param(Called(lambda s, x: x @ s.p, p=examples(IN, OUT)), "p", examples(), id="x @ W"),
    pytest.param(Called(lambda s, x: x @ s.p.t(), p=examples(OUT, IN)), "p", examples(), id="x @ W.t()"),
    pytest.param(Called(lambda s, x: s.p @ x, p=examples(OUT, IN)), "p", examples(IN, 3), id="W @ x"),
    pytest.param(Called(lambda s, x: x * s.p, p=examples(IN)), "p", examples(), id="gain"),
    pytest.param(Called(lambda s, x: x + s.p, p=examples(IN)), "p", examples(), id="shift"),
    pytest.param(Called(lambda s, x: F.linear(x, s.p * 0.5), p=examples(OUT, IN)), "p", examples(), id="W * scale"),
    pytest.param(Called(lambda s, x: F.linear(x, s.p[1]), p=examples(3, OUT, IN)), "p", examples(), id="W[1]"),
    pytest.param(
        Called(lambda s, x: s.w(x) * 0.5, w=nn.Linear(IN, OUT)), "w.weight", examples(), id="scaled linear weight"
    ),
    pytest.param(Called(lambda s, x: s.w(x * 0.5) / 4, w=nn.Linear(IN, OUT)), "w.weight", examples(), id="both sides"),
    pytest.param(
        Called(lambda s, x: torch.addmm(s.b, x, s.p), p=examples(IN, OUT), b=examples(OUT)), "p", examples(), id="addmm"
    ),
    pytest.param(
        Called(lambda s, x: torch.addmm(s.b, x, s.p), p=examples(IN, OUT), b=examples(OUT)),
        "b",
        examples(),
        id="addmm bias",
    ),
    pytest.param(
        Called(lambda s, x: torch.addcmul(s.b, x, s.p), p=examples(IN), b=examples(IN)), "p", examples(), id="addcmul"
    ),
]


def expected_rms(expected: Tensor) -> float:
    return expected.pow(2).mean().sqrt().item()


@pytest.mark.parametrize(("model", "name", "x"), MODELS)
def test_own_update_is_the_difference_by_hand(model: nn.Module, name: str, x: Any):
    """Up to broadcasting: a bias' own update is given once, not once per example; its RMS is the same."""
    replay, _, initial = replayed(model, name, x)
    now = moved(initial[name])
    found, expected = updated(replay, now), by_hand(model, name, x, now)
    torch.testing.assert_close(found.double().expand_as(expected) if found.dim() == 1 else found.double(), expected)
    assert expected_rms(expected) > 0


@pytest.mark.parametrize(("model", "name", "x"), MODELS)
def test_own_update_of_an_unmoved_parameter_is_zero(model: nn.Module, name: str, x: Any):
    replay, _, initial = replayed(model, name, x)
    assert not updated(replay, initial[name]).any()


LINEAR = [case for case in MODELS if case.id in ("linear weight", "x @ W", "W * scale", "conv1d weight", "gain")]
NONLINEAR = [case for case in MODELS if case.id in ("layer norm weight", "rms norm", "batch norm weight")]


@pytest.mark.parametrize(("model", "name", "x"), [*LINEAR, *NONLINEAR])
def test_own_update_is_exact_when_the_update_is_a_billionth_of_the_weight(model: nn.Module, name: str, x: Any):
    """In double precision the update itself is not rounded; f(p_t) - f(p_0) in float32 would be."""
    model = copy.deepcopy(model).double()
    x = x.double()
    replay, _, initial = replayed(model, name, x)
    update = 1e-9 * moved(initial[name]).abs()
    scale = expected_rms(updated(replay, initial[name] + 1e3 * update)) / 1e3
    assert expected_rms(updated(replay, initial[name] + update)) == pytest.approx(scale, rel=1e-5)


@pytest.mark.parametrize(("model", "name", "x"), LINEAR)
def test_linear_functions_act_on_the_update_alone(model: nn.Module, name: str, x: Any):
    """In float32, an update of the last bits gives exactly the function of those bits."""
    replay, _, initial = replayed(model, name, x)
    now = torch.nextafter(initial[name], torch.full_like(initial[name], math.inf))
    expected = by_hand(model, name, x, now)
    torch.testing.assert_close(updated(replay, now).double(), expected, rtol=1e-4, atol=1e-6 * expected_rms(expected))


def test_batch_norms_running_statistics_are_not_touched():
    model = nn.BatchNorm1d(IN)
    replay, _, initial = replayed(model, "weight", examples())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    updated(replay, moved(initial["weight"]))
    replay.output()
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    model(examples())
    assert not all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers()), "forwards do"


def test_the_model_and_its_gradients_are_not_touched():
    model = nn.Linear(IN, OUT)
    replay, _, initial = replayed(model, "weight", examples())
    updated(replay, moved(initial["weight"]))
    replay.output()
    assert torch.equal(model.weight, initial["weight"])
    assert model.weight.grad is None


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_output_is_the_parameters_own_part(kind: str):
    model = nn.Linear(IN, OUT)
    replay, *_ = replayed(model, kind, examples())
    expected = F.linear(examples(), model.weight) if kind == "weight" else model.bias
    torch.testing.assert_close(replay.output(), expected.detach())


def test_output_of_a_norms_gain_leaves_its_bias_out():
    model = nn.LayerNorm(IN)
    nn.init.normal_(model.bias)
    replay, *_ = replayed(model, "weight", examples())
    torch.testing.assert_close(replay.output(), F.layer_norm(examples(), (IN,), model.weight.detach()))


def test_input_scale_is_the_rms_before_the_scalars():
    x = examples()
    rms = expected_rms(x)
    plain, *_ = replayed(nn.Linear(IN, OUT), "weight", x)
    scaled, *_ = replayed(Called(lambda s, x: s.w(x * 0.5), w=nn.Linear(IN, OUT)), "w.weight", x)
    bias, *_ = replayed(nn.Linear(IN, OUT), "bias", x)
    ids, *_ = replayed(nn.Embedding(10, OUT), "weight", torch.arange(10))
    assert [plain.input_scale, scaled.input_scale] == pytest.approx([rms, rms])
    assert [bias.input_scale, ids.input_scale] == [1, 1]


def test_input_scale_of_a_recurrent_layer_is_its_sequences():
    x = examples(2, 3, IN)
    replay, *_ = replayed(nn.LSTM(IN, 64), "weight_ih_l0", x)
    assert replay.input_scale == pytest.approx(expected_rms(x))


def test_multiplier_is_the_product_of_all_scalars():
    model = Called(lambda s, x: F.linear(x * 0.5, s.p * 3) / 4, p=examples(OUT, IN))
    replay, *_ = replayed(model, "p", examples())
    assert replay.multiplier == pytest.approx(0.5 * 3 / 4)


# Large inputs: a subset of rows


def test_a_large_inputs_rows_are_sampled_and_their_rms_is_near():
    model, x = nn.Linear(64, 128), examples(4096, 64)
    replay, _, initial = replayed(model, "weight", x)
    now = moved(initial["weight"])
    found, expected = updated(replay, now), by_hand(model, "weight", x, now)
    assert found.numel() < expected.numel()
    assert expected_rms(found) == pytest.approx(expected_rms(expected), rel=0.1)


# Inherited


@pytest.mark.parametrize(
    ("model", "name", "upstream"),
    [
        (nn.Sequential(nn.Linear(IN, OUT), nn.Tanh(), nn.Linear(OUT, 3)), "2.weight", "0.weight"),
        (nn.Sequential(nn.Linear(IN, OUT), nn.LayerNorm(OUT)), "1.weight", "0.weight"),
        (nn.Sequential(nn.Linear(IN, OUT), nn.BatchNorm1d(OUT)), "1.weight", "0.weight"),
    ],
)
def test_inherited_is_the_difference_by_hand(model: nn.Module, name: str, upstream: str):
    """f(p_0; x_t) - f(p_0; x_0), though p has moved as well."""
    replay, first, initial = replayed(model, name, examples())
    with torch.no_grad():
        for moving in (name, upstream):
            parameter = model.get_parameter(moving)
            parameter.copy_(moved(initial[moving]))
    with Tracer(model, keep_calls=True) as later:
        model(examples())
    (use,) = (use for (parameter, _), use in later.uses.items() if parameter == name)
    path = name.rpartition(".")[0]
    x0, xt = first.calls[path].args[0], later.calls[path].args[0]
    weights = {n.rpartition(".")[2]: v for n, v in initial.items() if n.startswith(path)}
    module = model.get_submodule(path)
    expected = (functional_call(module, weights, (xt,)) - functional_call(module, weights, (x0,))).detach()
    assert expected_rms(expected) > 0
    torch.testing.assert_close(replay.inherited(use).to(expected.dtype), expected, rtol=1e-4, atol=1e-6)


def test_a_shared_input_inherits_nothing():
    model = nn.Linear(IN, OUT)
    replay, _, initial = replayed(model, "weight", examples())
    with torch.no_grad():
        model.weight.copy_(moved(initial["weight"]))
    with Tracer(model) as later:
        model(examples())
    assert not replay.inherited(later.uses["weight", "linear"]).any()


# Known bad cases


def test_own_update_of_a_divisor():
    model = Called(lambda s, x: x / s.p, p=torch.full((IN,), 2.0))
    replay, _, initial = replayed(model, "p", examples())
    now = moved(initial["p"])
    torch.testing.assert_close(updated(replay, now).double(), by_hand(model, "p", examples(), now))


def test_own_update_of_a_subtrahend_has_its_sign():
    model = Called(lambda s, x: x - s.p, p=examples(IN))
    replay, _, initial = replayed(model, "p", examples())
    now = moved(initial["p"])
    expected = by_hand(model, "p", examples(), now)
    torch.testing.assert_close(updated(replay, now).double().expand_as(expected), expected)


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda s, x: torch.addmm(x.tanh()[:, :1].expand(-1, OUT), x, s.p), id="addmm"),
        pytest.param(lambda s, x: F.linear(x, s.p.t(), x.mean(0).repeat(2)[:OUT]), id="linear"),
    ],
)
def test_own_update_where_the_function_adds_an_activation(function: Any):
    model = Called(function, p=examples(IN, OUT))
    replay, _, initial = replayed(model, "p", examples())
    now = moved(initial["p"])
    torch.testing.assert_close(updated(replay, now).double(), by_hand(model, "p", examples(), now))


@pytest.mark.parametrize("name", ["a", "b"])
def test_own_update_in_a_product_of_two_parameters(name: str):
    model = Called(lambda s, x: torch.einsum("bi,ri,or->bo", x, s.a, s.b), a=examples(2, IN), b=examples(3, 2))
    replay, _, initial = replayed(model, name, examples())
    now = moved(initial[name])
    torch.testing.assert_close(updated(replay, now).double(), by_hand(model, name, examples(), now))


def test_own_update_beside_a_parameter_that_is_not_trained():
    model = nn.LayerNorm(IN)
    model.bias.requires_grad_(False)
    replay, _, initial = replayed(model, "weight", examples())
    now = moved(initial["weight"])
    torch.testing.assert_close(updated(replay, now).double(), by_hand(model, "weight", examples(), now))


def test_own_update_of_a_parameter_that_is_a_view_of_a_flat_buffer():
    flat = examples(2 * IN).clone()
    model = Called(lambda s, x: F.layer_norm(x, (IN,), s.p))
    model.p = nn.Parameter(flat[IN:])
    replay, _, initial = replayed(model, "p", examples())
    with torch.no_grad():
        model.p.mul_(1.1)
    expected = by_hand(model, "p", examples(), model.p) - by_hand(model, "p", examples(), initial["p"])
    torch.testing.assert_close(updated(replay, model.p.detach()).double(), expected)


# Blocks


def operand_of(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Operand:
    """A view of a parameter, as a tracer describes it."""
    _, tracer, _ = replayed(nn.Linear(IN, OUT), "weight", examples())
    return tracer.uses["weight", "linear"].operand._replace(size=size, stride=stride, offset=offset)


ROWS = Channels(-2, -1)  # of a matrix that is (out, in)


def parts(sizes: Sequence[int]) -> list[Piece]:
    """Pieces that lie one behind the other."""
    return [Piece(sum(sizes[:number]), ((size, 1),)) for number, size in enumerate(sizes)]


def test_blocks_take_rows_and_channels():
    operand = operand_of((6, 4), (4, 1))
    parts = Piece(0, ((2, 1),)), Piece(2, ((4, 1),))
    found = blocks(operand, parts, ROWS)
    assert found == [Block(part, ROWS, operand) for part in parts]
    weight, x = examples(6, 4), examples(5, 4)
    for block in found:
        torch.testing.assert_close(block.channels(x @ weight.t()), x @ block.rows(weight).t())


@pytest.mark.parametrize(
    ("operand", "pieces"),
    [
        (operand_of((6, 4), (4, 1)), ()),
        (operand_of((6, 4), (4, 1)), (3, 2)),
        (operand_of((6, 4), (4, 1), 24), (3, 3)),
        (operand_of((6,), (1,)), (3, 3)),
        (operand_of((2, 6, 4), (24, 4, 1)), (3, 3)),
    ],
)
def test_what_is_no_whole_matrix_has_no_blocks(operand: Operand, pieces: tuple[int, ...]):
    assert blocks(operand, parts(pieces), ROWS._replace(own=-len(operand.size))) == []


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_blocks_cover_every_row_once(pieces: list[int]):
    total = sum(pieces)
    rows = torch.arange(total * 2.0).view(total, 2)
    found = blocks(operand_of((total, 2), (2, 1)), parts(pieces), ROWS)
    assert torch.equal(torch.cat([block.rows(rows) for block in found]), rows)


# Through the module


def module_replay(model: nn.Module, path: str, name: str, x: Tensor) -> ModuleReplay:
    module = model.get_submodule(path)
    initial = initial_of(module)
    with Tracer(model, keep_calls=True) as tracer:
        model(x)
    return ModuleReplay(path, module, name, tracer.calls[path or "(model)"], initial)


def test_weight_norm_through_its_module_is_the_difference_by_hand():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(IN, OUT)))
    v = model[0].parametrizations.weight.original1.detach().clone()
    g = model[0].parametrizations.weight.original0.detach().clone()
    replay = module_replay(model, "0", "parametrizations.weight.original1", examples())
    now = moved(v)
    before, after = (F.linear(examples(), g * values / values.norm(dim=1, keepdim=True)) for values in (v, now))
    torch.testing.assert_close(updated(replay, now), after - before, rtol=1e-4, atol=1e-6)


def test_a_module_called_again_is_the_module_itself():
    model = nn.Sequential(nn.Linear(IN, OUT), nn.BatchNorm1d(OUT), nn.Dropout(0.5))
    replay = module_replay(nn.Sequential(model), "0", "0.weight", examples())
    now = moved(model[0].weight.detach())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert expected_rms(updated(replay, now)) > 0
    assert not updated(replay, model[0].weight.detach()).any(), "dropout draws the same mask"
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


@pytest.mark.fault(25)
def test_dropouts_mask_is_that_of_the_forward():
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros(IN))

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x * self.log_scale.exp(), 0.5)

    torch.manual_seed(3)
    model = nn.Sequential(Dropped())
    with Tracer(model, keep_calls=True) as tracer:
        output = model(examples())
    replay = ModuleReplay("0", model[0], "log_scale", tracer.calls["0"], initial_of(model[0]))
    assert torch.equal(replay.output(), output.detach())
    update = updated(replay, torch.full((IN,), 0.1))
    assert torch.equal(update == 0, output == 0)


def test_random_states_are_as_before_after_a_module_is_called_again():
    model = nn.Sequential(nn.Sequential(nn.Linear(IN, OUT), nn.Dropout(0.5)))
    replay = module_replay(model, "0", "0.weight", examples())
    before = torch.get_rng_state()
    replay.output()
    assert torch.equal(before, torch.get_rng_state())


class Odd(nn.Module):
    """A module with a hidden parameter whose output depends on more than its input."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.log_scale, self.kind, self.calls = nn.Parameter(torch.zeros(IN)), kind, 0
        self.generator = torch.Generator().manual_seed(0)
        self.context: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        scaled = x * self.log_scale.exp()
        if self.kind == "counter":
            return scaled * self.calls
        if self.kind == "generator":
            return scaled * torch.rand(IN, generator=self.generator)
        if self.kind == "context":
            if self.context is None:
                raise RuntimeError("no context")
            context, self.context = self.context, None
            return scaled + context
        if self.kind == "shape":
            return scaled[: self.calls]
        return scaled


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("counter", "gives another output"),
        ("generator", "gives another output"),
        ("shape", "gives another output"),
        ("context", r"cannot be called by itself \(RuntimeError\)"),
    ],
)
def test_a_module_that_cannot_be_called_again_is_refused_with_the_reason(kind: str, why: str):
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Odd(kind)

        def forward(self, x: Tensor) -> Tensor:
            self.inner.context = x
            return self.inner(x)

    with pytest.raises(NotReplayed, match=f"inner {why}"):
        module_replay(Outer(), "inner", "log_scale", examples())


def test_the_deterministic_one_is_not_refused():
    replay = module_replay(nn.Sequential(Odd("plain")), "0", "log_scale", examples())
    now = torch.full((IN,), 0.1)
    torch.testing.assert_close(updated(replay, now), examples() * (math.exp(0.1) - 1))


def test_a_module_of_ids_has_an_input_scale_of_one():
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(10, OUT))

        def forward(self, ids: Tensor) -> Tensor:
            return F.embedding(ids, self.table.exp())

    replay = module_replay(nn.Sequential(Table()), "0", "table", torch.arange(10))
    assert replay.input_scale == 1
    assert module_replay(nn.Sequential(Odd("plain")), "0", "log_scale", examples()).input_scale == pytest.approx(
        expected_rms(examples())
    )


def test_a_module_that_saw_no_example_is_refused():
    model = nn.Sequential(nn.Linear(IN, OUT))
    with pytest.raises(NotReplayed):
        module_replay(model, "0", "weight", torch.zeros(0, IN))


def test_a_function_that_writes_into_its_input_is_called_on_a_copy():
    """Also in double precision, where nothing has to be converted."""
    model = Called(lambda s, x: (1 * x).mul_(s.p), p=torch.randn(IN)).double()
    replay, _, _ = replayed(model, "p", examples().double())
    first = updated(replay, 2 * model.p.detach())
    assert torch.equal(updated(replay, 2 * model.p.detach()), first)
    assert torch.allclose(first, examples().double() * model.p)
