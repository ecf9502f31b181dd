"""The exponents of theory beside those of the package's own reference models.

    python tests/benchmarks/theory.py [--quick]

The first table is for MLPs in every parametrization and optimizer, the second for what a bias does to the exponent of
its module, the others for Transformers. What stands there are exponents of RMS against width at the first update: h0
and own0 are each matrix's own part of its output and its own update, over its input (h0 of attention logits, of the
residual stream and of tied logits: all of it); dL/dh is the gradient at a layer's output, for MLPs at the first hidden
layer's; change is how far a layer's output moved in all; inherited is how far a matrix's input has moved its output,
here for the second hidden matrix, the first that is fed by another, and for the readout. The inherited change is a sum
of terms with different exponents, of which the largest wins at large widths only; later with few examples and small
updates, which is why it is measured on 64 examples and with updates of a tenth of the output at width 64. Its theory
has the initial weights fully aligned with what their input learned.

An entry is "theory (measured)". Theory behind a tilde is where an exponent tends to, and is not held against widths
that are far from it. "Before" is what a prototype in plain torch measured, on models and widths like these.

Theory is that of abc-parametrizations (Yang & Hu 2021, arXiv:2011.14522; Yang et al. 2022, arXiv:2203.03466, table 3),
of SP under SGD also Haas et al. 2025 (arXiv:2505.22491), of alignment Everett et al. 2024 (arXiv:2407.05872) and, for
the rules of Transformers, Lingle 2024 (arXiv:2404.05728), table 1.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import coordcheck
from coordcheck.checks.demo import next_byte_loss
from coordcheck.models import mlp, transformer

WIDTHS = (64, 128, 256, 512, 1024, 2048)
NEAR = 0.1  # distance from theory up to which an entry counts as reached
SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1}
TOKENS = torch.randint(64, (8, 33), generator=torch.Generator().manual_seed(0))

Build = Callable[[int], Any]
Grid = tuple[tuple[int, ...], int]  # widths, and how many seeds at each
Slope = tuple[float, float]  # a measured exponent, and the same between the two widest alone
Theory = float | tuple[float, float] | None  # an exponent, the ends of where it may lie, or none


class SignDescent(torch.optim.Optimizer):
    """The sign of the gradient: Lion's first step (Chen et al. 2023, arXiv:2302.06675)."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every parameter by its learning rate against the sign of its gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


def changed(build: Build, change: Callable[[Any, Any], Any]) -> Build:
    """The same with another model or optimizer: `change(model, optimizer)` gives both."""
    return lambda width: change(*build(width))


def lion(parametrization: str) -> Build:
    """The reference MLP with the groups and learning rates that Adam has in this parametrization."""

    def change(model: Any, optimizer: Any) -> Any:
        """Another optimizer."""
        groups = [{"params": group["params"], "lr": group["lr"]} for group in optimizer.param_groups]
        return model, SignDescent(groups, {"lr": 1e-3})

    return changed(mlp(parametrization, "adam", lr=1e-3), change)


def muon(parametrization: str, scale: Callable[[int, int], float]) -> Build:
    """The reference MLP under orthogonalised updates, times `scale(out, in)`."""

    def change(model: Any, _: Any) -> Any:
        """Another optimizer."""
        groups = []
        for parameter in model.parameters():
            rows, columns = parameter.shape
            own = max(1.0, rows / columns) ** 0.5  # torch's own scale, taken out again
            groups.append({"params": [parameter], "lr": 0.02 * scale(rows, columns) / own})
        return model, torch.optim.Muon(groups, weight_decay=0.0)

    return changed(mlp(parametrization, biases=False), change)


def decoder(parametrization: str, optimizer: str = "adam", **options: Any) -> Build:
    """The reference Transformer of 2 blocks."""
    shared: dict[str, Any] = {"vocabulary": 64, "context": 32, "gains": False, "activation": "relu", "lr": 2e-4}
    return transformer(parametrization, optimizer, **shared | options)


@torch.no_grad()
def constant_init(model: Any, optimizer: Any) -> Any:
    """The standard deviation of GPT-2 for every matrix."""
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    return model, optimizer


class Case(NamedTuple):
    """One row: theory for the input, hidden and readout matrix; inherited has none for the input's."""

    name: str
    build: Build
    initial: Sequence[float]
    own: Sequence[float]
    inherited: Sequence[float]
    gradient: float | None
    before: Sequence[float] = ()  # of inherited


class Entry(NamedTuple):
    """One quantity of some layers of one Transformer."""

    setting: str
    quantity: str
    layers: str
    theory: Theory
    before: Sequence[float] = ()
    counted: bool = True


# fmt: off
MLPS = [
    #                                               h0           own0            inherited    dL/dh  before
    Case("µP, Adam",           mlp("µP"),           (0, 0, -.5), (0, 0, 0),      (0, 0),      -1,    (-.01, -.09)),
    Case("µP, Lion",           lion("µP"),          (0, 0, -.5), (0, 0, 0),      (0, 0),      -1,    (-.01, -.09)),
    Case("µP, SGD",            mlp("µP", **SGD),    (0, 0, -.5), (0, 0, 0),      (0, 0),      -1,    (-.03, -.15)),
    Case("SP, SGD",            mlp("SP", **SGD),    (0, 0, 0),   (-.5, .5, 1),   (.5, 1),     -.5,   (.31, .84)),
    Case("SP, Adam",           mlp("SP"),           (0, 0, 0),   (0, 1, 1),      (1, 1.5),    -.5,   (.78, 1.44)),
    Case("SP, Lion",           lion("SP"),          (0, 0, 0),   (0, 1, 1),      (1, 1.5),    -.5,   (.78, 1.44)),
    Case("SP (PyTorch), SGD",  mlp("torch", **SGD), (0, 0, 0),   (-.5, .5, 1),   (.5, 1),     -.5,   (.35, .80)),
    Case("SP (PyTorch), Adam", mlp("torch"),        (0, 0, 0),   (0, 1, 1),      (1, 1.5),    -.5,   (.80, 1.38)),
    Case("NTK, SGD",           mlp("NTK", **SGD),   (0, 0, 0),   (-.5, -.5, 0),  (-.5, 0),    -.5,   (-.49, -.05)),
    Case("NTK, Adam",          mlp("NTK"),          (0, 0, 0),   (0, .5, .5),    (.5, 1),     -.5,   (.33, .84)),
    Case("mean-field, SGD", mlp("mean-field", **SGD), (0, 0, -.5), (-1, -1, -1), (-1, -1),    -1,    (-1.03, -1.14)),
    Case("mean-field, Adam",   mlp("mean-field"),   (0, 0, -.5), (0, .5, 0),     (.5, .5),    -1,    (.30, .28)),
    Case("SP, Muon", muon("SP", lambda o, i: 1.0),  (0, 0, 0),   (-.5, 0, .5),   (0, .5),     None,  (-.16, .39)),
    Case("SP, Muon √(out/in)", muon("SP", lambda o, i: (o/i)**.5),  (0, 0, 0), (0, 0, 0), (0, .5), None, (.04, .48)),
    Case("SP, Muon √max(1,out/in)", muon("SP", lambda o, i: max(1, o/i)**.5), (0, 0, 0), (0, 0, .5), (0, .5), None,
         (.04, .49)),
    Case("SP, Muon √max(out,in)", muon("SP", lambda o, i: max(o, i)**.5), (0, 0, 0), (0, .5, 1), (.5, 1), None),
    Case("µP, Muon √(out/in)", muon("µP", lambda o, i: (o/i)**.5),  (0, 0, -.5), (0, 0, 0), (0, 0), None, (.04, -.02)),
]
SPLITS: Sequence[tuple[str, str, float, float, str]] = [
    # case, module: theory of own0 for weight and bias; before
    ("SP (PyTorch), SGD",  "hidden.1", .5,   -.5,   "weight +0.50, module +0.34"),
    ("SP (PyTorch), SGD",  "readout",  1,    0,     "weight +0.89, module +0.50"),
    ("SP (PyTorch), Adam", "hidden.1", 1,    0,     "weight +0.98, module +0.94"),
    ("SP (PyTorch), Adam", "readout",  1,    0,     "weight +0.92, module +0.81"),
    ("SP, SGD",            "hidden.1", .5,   -.5,   "weight +0.52, bias -0.47"),
    ("µP, Adam",           "hidden.1", 0,    0,     "weight -0.03, bias +0.00"),
]
SETTINGS: Mapping[str, Build] = {
    "µP": decoder("µP"),
    "SP": decoder("SP"),
    "µP with gains": decoder("µP", gains=True),
    "µP, 1/√D": decoder("µP", attention_scale="1/sqrt(D)"),
    "µP, heads grow": decoder("µP", grows="heads"),
    "µP, heads grow, 1/√D": decoder("µP", grows="heads", attention_scale="1/sqrt(D)"),
    "SP, heads grow": decoder("SP", grows="heads"),
    "SP, all std 0.02": changed(decoder("SP"), constant_init),
    "µP, tied": decoder("µP", tied=True),
    "SP (PyTorch), tied": decoder("torch", tied=True),
    "µP, MQA": decoder("µP", grows="heads", kv_heads=1),
    "µP, MQA, SGD": decoder("µP", "sgd", lr=0.1, grows="heads", kv_heads=1),
}
LAYERS = {  # blocks.1 where no other block is named
    **{name: f"blocks.1.attention.{name}.weight" for name in ("query", "key", "value", "output")},
    **{name: f"blocks.1.mlp.{name}.weight" for name in ("up", "down")},
    **{name: f"{name}.weight" for name in ("embedding", "unembedding")},
    **{f"scores.{index}": f"blocks.{index}.attention/sdpa" for index in (0, 1)},
    **{"gain": "blocks.1.mlp_norm.weight", "blocks.0": "blocks.0", "blocks.1": "blocks.1", "logits": "(model)"},
}
REPORTS = {  # what each quantity is measured by, and its name in print
    "output": ("few", "h0"), "own_update": ("few", "own0"), "logits": ("few", "h0"), "activation": ("trained", "h0"),
    "change": ("trained", "change"), "gradient": ("whole", "dL/dh"), "inherited": ("whole", "inherited"),
    "logits_change": ("plain", "change"),
}
OBJECTS: Mapping[str, Sequence[Theory]] = {
    #              µP: h0  own0  change   SP: h0  own0  change
    "embedding":   (    0,    0,    0,         0,    0,    0),  # the residual stream before the blocks
    "query":       (    0,    0,    0,         0,    1,    1),
    "key":         (    0,    0,    0,         0,    1,    1),
    "value":       (    0,    0,    0,         0,    1,    1),
    "output":      (    0,    0,    0,         0,    1,    1),
    "up":          (    0,    0,    0,         0,    1,    1),
    "down":        (    0,    0,    0,         0,    1,    1),
    "blocks.0":    (    0, None,    0,         0, None,    1),  # the residual stream behind a block
    "blocks.1":    (    0, None,    0,         0, None,    1),
    "unembedding": ( -.5,    0,    0,         0,    1,  1.5),  # in SP it inherits more than it learns
}
ENTRIES = [
    Entry("µP", "gradient", "embedding output", -1, (-1.0, -1.0)),
    Entry("µP", "gradient", "query key", -1.5, (-1.56, -1.56)),
    Entry("µP, heads grow", "gradient", "query key", -1, (-1.03, -1.03)),
    Entry("SP", "gradient", "embedding output query key", -.5),
    Entry("µP", "logits", "scores.1", -.5, (-.49,)),
    *(Entry(setting, "logits", "scores.1", 0, (.01,))
      for setting in ("SP", "µP, 1/√D", "µP, heads grow", "µP, heads grow, 1/√D")),
    Entry("µP", "logits_change", "scores.0 scores.1", 0, (-.19, -.50), counted=False),
    Entry("µP, 1/√D", "logits_change", "scores.0 scores.1", .5, (.29, .07), counted=False),
    Entry("SP", "logits_change", "scores.0 scores.1", 1.5, (1.29, .80), counted=False),
    Entry("µP, heads grow", "logits_change", "scores.0 scores.1", 0, (-.11, -.06)),
    Entry("SP, heads grow", "logits_change", "scores.0 scores.1", 1, (.88, .77)),
    Entry("µP with gains", "own_update", "gain", 0, (0.0,)),
    Entry("SP, all std 0.02", "output", "query key value output up down", .5),
    Entry("SP, all std 0.02", "logits", "scores.1", 1, (1.0,)),
    Entry("SP, all std 0.02", "output", "unembedding", .5, (.51,)),
    Entry("µP, tied", "activation", "logits", (-.5, 0), (-.24,)),
    Entry("SP (PyTorch), tied", "activation", "logits", (.5, 1), (.72,)),  # without a multiplier
    Entry("µP, MQA", "output", "key value", 0),
    Entry("µP, MQA", "inherited", "value", .5, (.3,), counted=False),  # as a readout with the init of SP
    Entry("µP, MQA, SGD", "gradient", "key", -.5, (-.5,)),
    Entry("µP, MQA, SGD", "own_update", "key", .5, (.45,)),
]
# fmt: on
MATRICES = ("input.weight", "hidden.1.weight", "readout.weight")


@dataclass
class Tally:
    """Counts the entries that reach theory, and lists those that do not."""

    total: int = 0
    far: list[str] = field(default_factory=list)

    def entry(self, what: str, theory: Theory, found: Slope, before: float | None = None, counted: bool = True) -> str:
        """One entry as text: theory (measured)."""
        if theory is None:
            return "-"
        low, high = theory if isinstance(theory, tuple) else (theory, theory)
        text = f"{low:+.1f}" if low == high else f"{low:+.1f} to {high:+.1f}"
        self.total += counted
        if counted and not low - NEAR <= found[0] <= high + NEAR:
            line = f"{what}: theory {text}, measured {found[0]:+.2f}, between the two widest {found[1]:+.2f}"
            self.far.append(line if before is None else f"{line}, before {before:+.2f}")
        return f"{'' if counted else '~'}{text} ({found[0]:+.2f})"


def slope_of(report: coordcheck.Report, layer: str, quantity: str) -> Slope:
    """One slope of a report, where it holds for a matrix alone over that of its input; NaN where there is none."""
    step = 1 if quantity in ("own_update", "inherited", "change") else 0
    rows = report.slopes[report.slopes["layer"] == layer].set_index(["quantity", "step"])[["slope", "last_pair"]]
    values = rows.reindex([(quantity, step), ("input", 0)]).to_numpy(dtype=float)
    over = values[1] if quantity in ("output", "own_update", "inherited") else 0.0
    slope, widest = map(float, values[0] - over)
    return slope, widest


def fitted(scale: Callable[[int, int], float], grid: Grid) -> Slope:
    """The slope of `scale(width, seed)`."""
    widths, seeds = grid
    fit = coordcheck.fit_slope(widths, [[scale(width, seed) for width in widths] for seed in range(seeds)])
    return fit.slope, fit.last_pair


def rms(tensor: Tensor) -> float:
    """The root of the mean square."""
    return float(tensor.square().mean().sqrt())


def updated(build: Build, width: int, seed: int, loss: Callable[[Any, Any], Tensor], batch: Any) -> Any:
    """In plain torch: a model after its first update, and each module's inputs and outputs before and after."""
    torch.manual_seed(seed)
    model, optimizer = build(width)
    calls: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for name, module in model.named_modules():
        kept = calls[name]
        module.register_forward_hook(lambda _, args, h, kept=kept: kept.append((args[0].detach(), h.detach())))
    loss(model, batch).backward()
    optimizer.step()
    with torch.no_grad():
        loss(model, batch)
    return model, calls


@cache
def examples(count: int) -> tuple[Tensor, Tensor]:
    """Normal inputs with random labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 64, generator=generator), torch.randint(10, (count,), generator=generator)


@cache
def diagnosed(case: Case, count: int, grid: Grid) -> coordcheck.Report:
    """The diagnosis of one case on a probe of so many examples."""
    (widths, seeds), batch = grid, examples(count)
    builds = {case.name: case.build}
    return coordcheck.diagnose(builds, batch, loss=F.cross_entropy, widths=widths, seeds=seeds, probe=batch)


@cache
def at_a_tenth(case: Case) -> Case:
    """The same with learning rates at which the largest own update at width 64 is a tenth of its output."""
    rows = diagnosed(case, 64, ((64,), 1)).measurements
    rows = rows[rows["layer"].isin(MATRICES)]
    scales = rows.groupby(["layer", "quantity", "step"])["value"].first().unstack(["quantity", "step"])
    ratio = float((scales["own_update", 1] / scales["output", 0].clip(lower=0.1)).max())

    def change(model: Any, optimizer: Any) -> Any:
        """Other learning rates."""
        for group in optimizer.param_groups:
            group["lr"] *= 0.1 / ratio
        return model, optimizer

    return case._replace(build=changed(case.build, change))


def mlp_table(grid: Grid, tally: Tally) -> None:
    """Print the table of MLPs."""
    print(f"MLP, 3 hidden layers of ReLU, widths {grid[0]}, {grid[1]} seeds: theory (measured)")
    print(f"{'':26}{'h0 in / hid / out':44}{'own0 in / hid / out':44}{'inherited hid / out':30}dL/dh")
    for case in MLPS:
        few, many = diagnosed(case, 4, grid), diagnosed(at_a_tenth(case), 64, grid)
        line = f"{case.name:26}"
        for report, quantity, name, layers, theory in (
            (few, "output", "h0", MATRICES, case.initial),
            (few, "own_update", "own0", MATRICES, case.own),
            (many, "inherited", "inherited", MATRICES[1:], case.inherited),
        ):
            before = case.before if quantity == "inherited" else ()
            cells = [
                tally.entry(f"{case.name}, {name} of {layer}", value, slope_of(report, layer, quantity), known)
                for layer, value, known in zip_longest(layers, theory, before)
            ]
            line += f"{' / '.join(cells):{len(theory) * 14 + 2}}"
        gradient = slope_of(few, "hidden.0.weight", "gradient")
        print(line + tally.entry(f"{case.name}, dL/dh", case.gradient, gradient), flush=True)


def split_table(grid: Grid, tally: Tally) -> None:
    """Print the own updates of a weight, of its bias, and of the module that holds both."""
    print(f"\nThe same MLPs, own0 on 64 examples\n{'':30}{'weight':16}{'bias':16}{'module':10}measured before")
    for name, module, weight, bias, before in SPLITS:
        case = at_a_tenth(next(case for case in MLPS if case.name == name))
        report = diagnosed(case, 64, grid)

        def moved(width: int, seed: int, build: Build = case.build, module: str = module) -> float:
            """RMS of f(theta_1; x_0) - f(theta_0; x_0) over that of x_0, of the whole module f."""
            model, calls = updated(build, width, seed, coordcheck.output_loss(F.cross_entropy), examples(64))
            x, h = calls[module][0]
            return rms(model.get_submodule(module)(x).detach() - h) / rms(x)

        cells = "".join(
            f"{tally.entry(f'{name}, own0 of {part} on 64', theory, slope_of(report, part, 'own_update')):16}"
            for part, theory in ((f"{module}.weight", weight), (f"{module}.bias", bias))
        )
        print(f"{name + ', ' + module:30}{cells}{fitted(moved, grid)[0]:<+10.2f}{before}", flush=True)
    print("A module adds its bias's update, which hides the weight's at small widths: no power law, so each by itself.")


@cache
def report_of(setting: str, how: str, grid: Grid) -> coordcheck.Report:
    """A Transformer diagnosed on 8 tokens ("few") or 256 ("whole"), or "trained" on 256 for one update."""
    (widths, seeds), builds = grid, {setting: SETTINGS[setting]}
    shared: dict[str, Any] = {"loss": next_byte_loss, "widths": widths, "seeds": seeds}
    if how == "trained":
        return coordcheck.check(builds, TOKENS, steps=1, probe=None, **shared)
    return coordcheck.diagnose(builds, TOKENS, probe=TOKENS[:1, :9] if how == "few" else TOKENS, **shared)


@cache
def logit_changes(setting: str, width: int, seed: int) -> Mapping[str, float]:
    """By site, how far the first update moved the attention logits."""
    model, calls = updated(SETTINGS[setting], width, seed, next_byte_loss, TOKENS)

    def logits(name: str, step: int) -> Tensor:
        """(batch, heads, time, time) logits, zero where they are masked."""
        attention = model.get_submodule(name)
        outputs = (calls[f"{name}.{part}"][step][1] for part in ("query", "key"))
        query, key = (h.unflatten(-1, (-1, attention.head_size)).transpose(1, 2) for h in outputs)
        scores: Tensor = query @ key.mT * attention.scale
        return scores.tril()

    names = [f"blocks.{index}.attention" for index in range(len(model.blocks))]
    return {f"{name}/sdpa": rms(logits(name, 1) - logits(name, 0)) for name in names}


def cell(setting: str, quantity: str, layer: str, theory: Theory, grid: Grid, tally: Tally, **options: Any) -> str:
    """One entry for a Transformer."""
    how, name = REPORTS[quantity]
    site = LAYERS[layer].removesuffix(".weight") if quantity == "change" else LAYERS[layer]
    if how == "plain":
        measured = fitted(lambda width, seed: logit_changes(setting, width, seed)[site], grid)
    else:
        measured = slope_of(report_of(setting, how, grid), site, quantity)
    return tally.entry(f"Transformer {setting}, {name} of {layer}", theory, measured, **options)


def transformer_tables(grid: Grid, tally: Tally) -> None:
    """Print the tables of Transformers."""
    print(f"\nTransformer, 2 blocks, Adam, widths {grid[0]}, {grid[1]} seeds: theory (measured)")
    print("h0 and own0 on 8 tokens; the change of the layer's output, which sums own and inherited, and dL/dh on 256")
    print(f"{'':14}" + "".join(f"{f'{what} {name}':16}" for name in ("µP", "SP") for what in ("h0", "own0", "change")))
    for layer, theory in OBJECTS.items():
        first = "output" if LAYERS[layer].endswith(".weight") else "activation"
        columns = [(name, quantity) for name in ("µP", "SP") for quantity in (first, "own_update", "change")]
        cells = [cell(*which, layer, value, grid, tally) for which, value in zip(columns, theory, strict=True)]
        print(f"{layer:14}" + "".join(f"{text:16}" for text in cells), flush=True)
    print("\nVariants and other quantities; scores are attention logits")
    for entry in ENTRIES:
        texts = []
        for layer, before in zip_longest(entry.layers.split(), entry.before):
            more = {"before": before, "counted": entry.counted}
            text = cell(entry.setting, entry.quantity, layer, entry.theory, grid, tally, **more)
            texts.append(f"{layer} {text}" + ("" if before is None else f", before {before:+.2f}"))
        print(f"{entry.setting:22}{REPORTS[entry.quantity][1]:11}" + "; ".join(texts), flush=True)


def main() -> int:
    """Print the tables and the entries that do not reach theory."""
    parser = argparse.ArgumentParser(description="Exponents of theory beside those measured.")
    parser.add_argument("--quick", action="store_true", help="small widths, few seeds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tally = Tally()
    for print_tables, widths in ((mlp_table, WIDTHS), (split_table, WIDTHS), (transformer_tables, WIDTHS[:5])):
        print_tables((WIDTHS[:4], 2) if options.quick else (widths, 5), tally)
    print(f"\n{tally.total - len(tally.far)} of {tally.total} entries within {NEAR} of theory; the others:")
    print("\n".join(f"  {line}" for line in tally.far) or "  none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
