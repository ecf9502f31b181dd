"""`fix`: rules from a diagnosis, applied from outside of a model's code, and the model diagnosed again."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest
import torch
import torch.nn.functional as F
from conftest import pair_batch
from torch import Tensor, nn

import coordcheck
from coordcheck.common.errors import CoordCheckError, RunFileError
from coordcheck.runs.rules import Linear, Rule, RuleBook
from coordcheck.runs.words import Role, Side

Build = Callable[[int], Any]
TOKENS = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(0))
WIDTHS = (32, 64, 128)


def next_token(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def standard(width: int) -> Any:
    model = net(width)
    return model, torch.optim.Adam(model.parameters(), lr=1e-2)


class Decoder(nn.Module):
    """One block of a decoder, with what users do differently."""

    def __init__(self, width: int, fused: bool, normed: str, tied: str) -> None:
        super().__init__()
        self.size, self.tied = width // 4, tied
        self.wte, self.norm = nn.Embedding(32, width), nn.LayerNorm(width)
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        if normed:
            self.q_norm, self.k_norm = (nn.RMSNorm(self.size, elementwise_affine=normed == "gain") for _ in range(2))
        self.o, self.last = nn.Linear(width, width), nn.LayerNorm(width)
        if tied != "function":
            self.head = nn.Linear(width, 32, bias=False)
        if tied == "module":
            self.head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids)
        taken = self.norm(x)
        if hasattr(self, "qkv"):
            q, k, v = self.qkv(taken).chunk(3, -1)
        else:
            q, k, v = self.q(taken), self.k(taken), self.v(taken)
        q, k, v = (t.unflatten(-1, (4, self.size)).transpose(1, 2) for t in (q, k, v))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = self.last(x + self.o(mixed.transpose(1, 2).flatten(2)))
        return F.linear(x, self.wte.weight) if self.tied == "function" else self.head(x)


def decoder(width: int, fused: bool = False, normed: str = "", tied: str = "") -> Any:
    model = Decoder(width, fused, normed, tied)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def conv_net(width: int) -> Any:
    model = nn.Sequential(
        *(nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)),
    )
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 6, 6, generator=generator), torch.randint(10, (8,), generator=generator)


class Experts(nn.Module):
    """Three experts, of which the last one never gets a token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into = nn.Linear(64, width)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x).relu()
        half = len(h) // 2
        mixed = torch.cat([self.experts[0](h[:half]), self.experts[1](h[half:]), self.experts[2](h[:0])])
        return self.out((h + mixed).relu())


def experts(width: int) -> Any:
    model = Experts(width)
    return model, torch.optim.Adam(model.parameters(), lr=1e-2)


CASES: dict[str, tuple[Build, Any, Any]] = {
    "mlp": (standard, pair_batch(), F.cross_entropy),
    "conv": (conv_net, images(), F.cross_entropy),
    **{
        name: (functools.partial(decoder, **options), TOKENS, next_token)
        for name, options in {
            "attention": {},
            "fused": {"fused": True},
            "normed": {"normed": "gain"},
            "normed without gains": {"normed": "plain"},
            "tied": {"tied": "module"},
            "tied by a function": {"tied": "function", "fused": True},
        }.items()
    },
}


@functools.cache
def fixed(name: str) -> coordcheck.Fix:
    build, batch, loss = CASES[name]
    return coordcheck.fix(build, batch, loss=loss, base_width=32, widths=WIDTHS)


def told(found: coordcheck.Fix) -> dict[str, tuple[float, float, float, str]]:
    rows = found.rules.itertuples()
    return {row.parameter: (row.init, row.lr, row.multiplier, row.where) for row in rows}


@pytest.mark.parametrize("name", CASES)
def test_a_standard_model_is_mup_after_one_round(name):
    found = fixed(name)
    assert [verdict.value for verdict in found.status][1] == "ok", found
    assert (found.before.exit_code, found.exit_code) == (1, 0), found
    assert set(found.rules["round"]) == {1}


@pytest.mark.parametrize("name", CASES)
def test_it_passes_a_check_with_other_seeds_and_data(name):
    _, batch, loss = CASES[name]
    again = coordcheck.diagnose(fixed(name).build, batch, loss=loss, widths=WIDTHS, seeds=[7, 8])
    assert again.exit_code == 0, again


def test_rules_say_what_to_multiply_of_which_parameter():
    assert told(fixed("mlp")) == {"2.weight": (0, -1, 0, ""), "4.weight": (-0.5, -1, 0, "")}
    assert told(fixed("conv"))["8.weight"] == (0, 0, -0.5, "")


def test_a_bias_that_is_most_of_an_output_keeps_its_scale():
    def build(width: int) -> Any:
        model = nn.Sequential(nn.Linear(64, width), nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, 10))
        with torch.no_grad():
            model[0].weight.mul_(0.02)
            model[0].bias.zero_()
        return model, torch.optim.Adam(model.parameters(), lr=1e-2)

    found = coordcheck.fix(build, pair_batch(), loss=F.cross_entropy, base_width=32, widths=WIDTHS)
    assert told(found)["1.bias"] == (0.5, 0, 0, "")
    assert set(found.rules["round"]) == {1, 2}
    assert found.exit_code == 0


def test_multipliers_of_one_use_are_put_where_that_is_alone():
    assert told(fixed("attention"))["(model)/sdpa"] == (0, 0, -0.5, "output of q")
    assert told(fixed("normed"))["(model)/sdpa"] == (0, 0, -0.5, "output of q_norm")
    assert told(fixed("fused"))["(model)/sdpa"] == (0, 0, -0.5, "output of qkv")
    assert told(fixed("tied"))["wte.weight@linear"] == (0, 0, -1, "input of head")
    assert told(fixed("tied by a function"))["wte.weight@linear"] == (0, 0, -1, "output of last")


def test_a_repeat_that_the_probe_does_not_reach_is_changed_as_the_others():
    found = coordcheck.fix(experts, pair_batch(), loss=F.cross_entropy, base_width=32, widths=WIDTHS)
    rules = told(found)
    assert rules["experts.2.weight"] == rules["experts.0.weight"] == (0, -1, 0, "")
    causes = found.rules.set_index("parameter")["cause"]
    assert causes["experts.2.weight"] == "lr, as of its repeats"
    assert [text.partition(":")[0] for text in found.unjudged] == ["experts.2.bias"]


def trained(made: Any, batch: Any, loss: Any, steps: int = 5) -> tuple[list[float], dict[str, Tensor]]:
    model, optimizer = made
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model, batch) if loss is next_token else loss(model(batch[0]), batch[1])
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses, dict(model.state_dict())


def built(build: Build, width: int) -> Any:
    torch.manual_seed(0)
    return build(width)


@pytest.mark.parametrize("name", CASES)
def test_the_code_does_to_the_bit_what_apply_does(name):
    build, batch, loss = CASES[name]
    source = fixed(name).to_code()
    assert len(source.splitlines()) <= 40
    assert "coordcheck" not in source
    names: dict[str, Any] = {}
    exec(source, names)
    by_code, by_apply = built(build, 96), built(build, 96)
    names["apply_mup"](*by_code, 96)
    fixed(name).apply(*by_apply, width=96)
    losses, state = trained(by_code, batch, loss)
    other_losses, other = trained(by_apply, batch, loss)
    assert losses == other_losses
    assert all(torch.equal(state[key], other[key]) for key in other)
    assert state.keys() == other.keys()
    assert losses != trained(built(build, 96), batch, loss)[0]


def test_the_code_groups_names_by_globs_that_match_no_others():
    def globs(*parameters: str) -> list[str]:
        rules = tuple(Rule(name, name, Role.HIDDEN, learning_rate=-1.0) for name in parameters)
        everything = (*parameters, "blocks.0.gate.weight", "blocks.1.gate.weight", "other.0.up")
        code = coordcheck.Fix(RuleBook(64, "keep", rules, everything)).to_code()
        return re.findall(r"'([^']+)': \(0, -1\)", code)

    assert globs("blocks.0.up", "blocks.1.up") == ["blocks.*.up"]
    assert globs("blocks.0.up", "blocks.2.up", "blocks.0.q", "blocks.2.q") == ["blocks.*.up", "blocks.*.q"]
    qkv = [f"blocks.{number}.{letter}.weight" for letter in "qkv" for number in range(2)]
    assert globs(*qkv) == ["blocks.*.[qkv].weight"]
    assert globs("blocks.0.gate.weight") == ["blocks.0.gate.weight"]
    assert globs("a[0].w") == ["a[[]0].w"]


@pytest.mark.parametrize("name", ["mlp", "fused"])
def test_a_saved_fix_does_the_same(name, tmp_path):
    build, batch, loss = CASES[name]
    fixed(name).save(tmp_path / "mup.json")
    loaded = coordcheck.Fix.load(tmp_path / "mup.json")
    made, other = built(build, 64), built(build, 64)
    loaded.apply(*made, width=64)
    fixed(name).apply(*other, width=64)
    assert trained(made, batch, loss)[0] == trained(other, batch, loss)[0]
    assert loaded.to_code() == fixed(name).to_code()
    assert loaded.rules.equals(fixed(name).rules)
    with pytest.raises(CoordCheckError, match="holds rules, and no model"):
        loaded.build(64)


def test_at_the_base_width_nothing_changes():
    build, batch, loss = CASES["fused"]
    made = built(build, 32)
    fixed("fused").apply(*made, width=32)
    assert trained(made, batch, loss)[0] == trained(built(build, 32), batch, loss)[0]


# ---- what is kept, and what is refused


class Halves(nn.Module):
    """Two matrices, in one or apart."""

    def __init__(self, fused: bool, bias: bool) -> None:
        super().__init__()
        self.fused = fused
        both, self.out = nn.Linear(64, 32, bias=bias), nn.Linear(16, 10)
        if fused:
            self.both = both
        else:
            self.a, self.b = nn.Linear(64, 16, bias=bias), nn.Linear(64, 16, bias=bias)
            with torch.no_grad():
                for place, half in enumerate((self.a, self.b)):
                    half.weight.copy_(both.weight[16 * place : 16 * place + 16])
                    half.bias.copy_(both.bias[16 * place : 16 * place + 16]) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.both(x).chunk(2, -1) if self.fused else (self.a(x), self.b(x))
        return self.out(a.relu() * b.tanh())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("degree", [0, 1])
def test_rows_of_one_tensor_learn_at_a_rate_of_their_own(degree, bias):
    """A hook on the rows does what a smaller learning rate does of a matrix that is apart, and leaves its bias."""
    channels = tuple(Linear(*number) for number in ((2, 0), (1, 0), (1, 0), (0, 2), (0, 0), (0, 1), (1, 0)))
    block = Rule("both.weight[0]", "both.weight", Role.HIDDEN, learning_rate=-1.0, degree=degree, cause="lr")
    block = block._replace(module="both", side=Side.OUTPUT, channels=channels)
    whole = Rule("a.weight", "a.weight", Role.HIDDEN, learning_rate=-1.0, degree=degree, cause="lr")
    losses = []
    for fused, rule in ((True, block), (False, whole)):
        torch.manual_seed(0)
        model = Halves(fused, bias)
        book = RuleBook(4, "keep", (rule,), tuple(dict(model.named_parameters())))
        kind: Any = torch.optim.SGD if degree else torch.optim.Adam
        options = {"lr": 1.0, "momentum": 0.5} if degree else {"lr": 1e-2, "eps": 1e-30}
        optimizer = kind(model.parameters(), **options)
        coordcheck.Fix(book).apply(model, optimizer, width=16)
        losses.append(trained((model, optimizer), pair_batch(), F.cross_entropy)[0])
        if fused:
            by_code: dict[str, Any] = {}
            exec(coordcheck.Fix(book).to_code(), by_code)
            torch.manual_seed(0)
            again = Halves(fused, bias)
            other = kind(again.parameters(), **options)
            by_code["apply_mup"](again, other, 16)
            assert trained((again, other), pair_batch(), F.cross_entropy)[0] == losses[0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def groups_of(optimizer: torch.optim.Optimizer) -> list[tuple[int, float]]:
    return [(len(group["params"]), round(group["lr"], 6)) for group in optimizer.param_groups]


def test_groups_are_split_where_they_stand_and_keep_all_else():
    model = net(128)
    given = [{"params": list(model[0].parameters()), "betas": (0.8, 0.9)}, {"params": list(model[2:].parameters())}]
    optimizer = torch.optim.AdamW(given, lr=1e-2, weight_decay=0.1)
    first, defaults = optimizer.param_groups[0], dict(optimizer.defaults)
    fixed("mlp").apply(model, optimizer, width=128)
    assert optimizer.param_groups[0] is first
    assert groups_of(optimizer) == [(2, 0.01), (2, 0.0025), (2, 0.01)]
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.9), (0.9, 0.999), (0.9, 0.999)]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}
    assert optimizer.defaults == defaults
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_rate_times_decay_may_stay_constant():
    found = coordcheck.fix(
        standard, pair_batch(), loss=F.cross_entropy, base_width=32, weight_decay="constant", rounds=1
    )
    made = net(128)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2, weight_decay=0.1)
    found.apply(made, optimizer, width=128)
    assert {round(group["lr"] * group["weight_decay"], 9) for group in optimizer.param_groups} == {1e-3}
    names: dict[str, Any] = {}
    exec(found.to_code(), names)
    again = net(128)
    other = torch.optim.AdamW(again.parameters(), lr=1e-2, weight_decay=0.1)
    names["apply_mup"](again, other, 128)
    assert [g["weight_decay"] for g in other.param_groups] == [g["weight_decay"] for g in optimizer.param_groups]


def test_several_optimizers_and_wrappers_are_looked_through():
    model = net(128)
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"), device_ids=[])
    slow, rest = [model[2].weight, model[4].weight], [model[0].weight, model[0].bias, model[2].bias, model[4].bias]
    optimizers = [torch.optim.SGD(rest, lr=0.1), torch.optim.Adam(slow, lr=1e-2)]
    before = model[4].weight.clone()
    fixed("mlp").apply(wrapped, optimizers, width=128)
    assert [group["lr"] for group in optimizers[1].param_groups] == [1e-2 / 4]
    assert [group["lr"] for group in optimizers[0].param_groups] == [0.1]
    assert torch.equal(model[4].weight, before * 0.5)


def test_hooks_act_in_a_compiled_model_as_in_the_plain_one():
    losses = []
    for compiled in (False, True):
        model, optimizer = built(functools.partial(decoder, fused=True), 64)
        fixed("fused").apply(model, optimizer, width=64)
        run = torch.compile(model, backend="eager") if compiled else model
        losses.append(trained((run, optimizer), TOKENS, next_token)[0])
    assert losses[0] == losses[1]


def test_copies_of_a_fixed_model_keep_its_hooks():
    model, optimizer = built(functools.partial(decoder, fused=True), 64)
    fixed("fused").apply(model, optimizer, width=64)
    again = copy.deepcopy(model)
    assert torch.equal(again(TOKENS), model(TOKENS))
    with pytest.raises(CoordCheckError, match="applied to this model before"):
        fixed("fused").apply(again, torch.optim.Adam(again.parameters()), width=64)


def steps(model: nn.Module, optimizer: Any) -> None:
    F.cross_entropy(model(pair_batch()[0]), pair_batch()[1]).backward()
    optimizer.step()


def misnamed() -> nn.Module:
    model = nn.Sequential()
    for name, module in zip("abcde", net(64), strict=True):
        model.add_module(name, module)
    return model


REFUSED: dict[str, tuple[Callable[[nn.Module, Any], Any], str]] = {
    "a scheduler": (lambda m, o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1.0), "Make the scheduler after"),
    "a step": (steps, "has made a step"),
    "twice": (lambda m, o: fixed("mlp").apply(m, o, width=64), "applied to this model before, for width 64"),
    "meta": (lambda m, o: m.to_empty(device="meta"), "on the meta device.*after model.to_empty"),
    "no rate": (lambda m, o: o.param_groups[0].update(lr=None), "has lr=None, which no number multiplies"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_stands_in_the_way_is_told_and_nothing_is_changed(case):
    model = net(64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    prepare, why = REFUSED[case]
    prepare(model, optimizer)
    before, groups = copy.deepcopy(model.state_dict()), groups_of(optimizer) if case != "no rate" else None
    with pytest.raises(CoordCheckError, match=why):
        fixed("mlp").apply(model, optimizer, width=64)
    if case != "meta":
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    if groups is not None:
        assert groups_of(optimizer) == groups


def test_other_names_are_told_with_the_nearest():
    model = misnamed()
    with pytest.raises(CoordCheckError, match=r"no parameter '2.weight' \(did you mean"):
        fixed("mlp").apply(model, torch.optim.Adam(model.parameters()), width=64)
    attention = Decoder(64, fused=False, normed="", tied="")
    with pytest.raises(CoordCheckError, match=r"no parameter 'qkv.weight'.*and 1 more|no parameter"):
        fixed("fused").apply(attention, torch.optim.Adam(attention.parameters()), width=64)


def test_a_model_with_more_parameters_is_not_fixed_in_part():
    model = nn.Sequential(*net(64), nn.Linear(10, 10))
    with pytest.raises(
        CoordCheckError, match=r"'5.weight' \(did you mean .*, and 1 more: the model that the rules are of"
    ):
        fixed("mlp").apply(model, torch.optim.Adam(model.parameters()), width=64)


def test_rows_tell_a_wrong_width():
    model, optimizer = decoder(64, fused=True)
    with pytest.raises(CoordCheckError, match="is width= that of this model"):
        fixed("fused").apply(model, optimizer, width=96)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"base_width": 0}, "base_width must be an integer of 1 or more"),
        ({"weight_decay": "none"}, "weight_decay must be one of keep, constant"),
        ({"rounds": 0}, "rounds must be"),
        ({"base_width": 7}, "no model of the base width: build\\(7\\) raised ValueError"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments, why):
    def even(width: int) -> Any:
        if width % 2:
            raise ValueError(width)
        return standard(width)

    with pytest.raises(CoordCheckError, match=why):
        coordcheck.fix(even, pair_batch(), loss=F.cross_entropy, widths=WIDTHS, **arguments)


class Stubborn(torch.optim.Adam):
    """An optimizer whose rate is its own, and not its groups'."""

    def step(self, closure: Any = None) -> None:
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = self.defaults["lr"]
        super().step(closure)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate


def test_an_optimizer_that_does_not_use_its_groups_rates_is_told():
    def build(width: int) -> Any:
        model = net(width)
        return model, Stubborn(model.parameters(), lr=1e-2)

    found = coordcheck.fix(build, pair_batch(), loss=F.cross_entropy, base_width=32, widths=WIDTHS)
    assert found.exit_code == 1
    assert any("does not use its groups' lr" in text for text in found.obstacles), found


def test_a_damaged_file_is_refused(tmp_path):
    fixed("mlp").save(tmp_path / "mup.json")
    data = (tmp_path / "mup.json").read_bytes()
    (tmp_path / "mup.json").write_bytes(data.replace(b"2.weight", b"3.weight"))
    with pytest.raises(RunFileError, match="is damaged"):
        coordcheck.Fix.load(tmp_path / "mup.json")


def test_a_model_in_mup_is_left_as_it_is():
    found = coordcheck.fix(fixed("mlp").build, pair_batch(), loss=F.cross_entropy, base_width=32, widths=WIDTHS)
    assert found.exit_code == 0
    assert found.rules.empty
    assert "nothing to change" in str(found)


class Mixer(nn.Module):
    """A network over 4 tokens that all channels share: its gradients sum over the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding, self.readout = nn.Linear(16, width), nn.Linear(width, 10)
        self.tokens = nn.Sequential(nn.Linear(4, width), nn.GELU(), nn.Linear(width, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        return self.readout((x + self.tokens(x.transpose(1, 2)).transpose(1, 2)).mean(1))


def test_a_gradient_that_sums_over_channels_stays_mended():
    def build(width: int) -> Any:
        model = Mixer(width)
        return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(16, 4, 16, generator=generator), torch.randint(10, (16,), generator=generator)
    found = coordcheck.fix(build, batch, loss=F.cross_entropy, base_width=32, widths=WIDTHS)
    assert (found.exit_code, found.obstacles) == (0, ()), found
    rates = {name: sum(row.lr for row in rows.itertuples()) for name, rows in found.rules.groupby("parameter")}
    assert (rates["embedding.weight"], rates["tokens.0.weight"], rates["tokens.2.weight"]) == (1, 0.5, -1)
    assert found.after.culprits.empty


class Bare(nn.Module):
    """An attention whose matrices are used by functions: no module gives its queries."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(32, width)
        self.qkv = nn.Parameter(torch.randn(3, width, width) / width**0.5)
        self.head = nn.Linear(width, 32)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids)
        q, k, v = (F.linear(x, matrix) for matrix in self.qkv)
        return self.head(x + F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_what_no_rule_mends_is_told_and_the_rest_is_fixed():
    def build(width: int) -> Any:
        model = Bare(width)
        return model, torch.optim.Adam(model.parameters(), lr=1e-3)

    found = coordcheck.fix(build, TOKENS, loss=next_token, base_width=32, widths=WIDTHS)
    assert found.exit_code == 1
    assert [text.partition(" × ")[0] for text in found.obstacles] == ["(model)/sdpa: the attention scale"], found
    assert list(found.after.culprits["layer"]) == ["(model)/sdpa"]
    assert "not fixed: (model)/sdpa" in str(found)


class Plain:
    """An optimizer that is none of torch's, as far as a loop needs one."""

    def __init__(self, parameters: Any, lr: float) -> None:
        self.param_groups = [{"params": list(parameters), "lr": lr}]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.param_groups[0]["params"]:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sign() * group["lr"]) if p.grad is not None else None


def test_trials_with_optimizers_of_ones_own_are_fixed_and_sent_to_workers():
    def build(width: int) -> Any:
        model = net(width)
        optimizers: Any = [torch.optim.Adam(model[:2].parameters(), lr=1e-2), Plain(model[2:].parameters(), lr=1e-2)]
        return coordcheck.Trial(model, optimizers, batch=pair_batch(), loss=F.cross_entropy)

    found = coordcheck.fix(build, base_width=32, widths=WIDTHS)
    assert (found.before.exit_code, found.exit_code) == (1, 0), found
    sent = cloudpickle.loads(cloudpickle.dumps(found.build))
    assert groups_of(sent(64).optimizer[1]) == [(2, 0.005), (2, 0.01)]
