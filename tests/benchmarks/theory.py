"""The exponents of theory beside those of the package's own reference models.

    python tests/benchmarks/theory.py [--quick]

The first table is for MLPs in every parametrization and optimizer, the second for Transformers in µP and SP. What
stands there are exponents of RMS against width at the first update: h0 and own0 are each matrix's own part of its
output and its own update, over its input; dL/dh is the gradient at the first hidden layer; inherited is how far the
readout's input has moved it. The inherited change is a sum of terms with different exponents, of which the largest wins
at large widths only; later with few examples and small updates, which is why it is measured on 64 examples and with
updates of a tenth of the output at width 64. Theory is that of
abc-parametrizations (Yang & Hu 2021, arXiv:2011.14522; Yang et al. 2022, arXiv:2203.03466, table 3) and, for the rules
of Transformers, Lingle 2024 (arXiv:2404.05728), table 1.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import coordcheck
from coordcheck.demo import next_byte_loss
from coordcheck.models import mlp, transformer

NEAR = 0.1  # distance from theory up to which an entry counts as reached


class SignDescent(torch.optim.Optimizer):
    """The sign of the gradient: Lion's first step (Chen et al. 2023, arXiv:2302.06675)."""

    def __init__(self, groups: Any, lr: float = 1e-3) -> None:
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Move every parameter by its learning rate against the sign of its gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


def lion(parametrization: str) -> Callable[[int], Any]:
    """The reference MLP with the groups and learning rates that Adam has in this parametrization."""

    def build(width: int) -> Any:
        model, optimizer = mlp(parametrization, "adam", lr=1e-3)(width)
        groups = [{"params": group["params"], "lr": group["lr"]} for group in optimizer.param_groups]
        return model, SignDescent(groups)

    return build


def muon(parametrization: str, scale: Callable[[int, int], float]) -> Callable[[int], Any]:
    """The reference MLP under orthogonalised updates, times `scale(out, in)`."""

    def build(width: int) -> Any:
        model, _ = mlp(parametrization, biases=False)(width)
        groups = []
        for parameter in model.parameters():
            rows, columns = parameter.shape
            own = max(1.0, rows / columns) ** 0.5  # torch's own scale, taken out again
            groups.append({"params": [parameter], "lr": 0.02 * scale(rows, columns) / own})
        return model, torch.optim.Muon(groups, weight_decay=0.0)

    return build


class Case(NamedTuple):
    """One row: theory for the input, hidden and readout matrix."""

    name: str
    build: Callable[[int], Any]
    initial: Sequence[float]
    own: Sequence[float]
    inherited: float | None
    gradient: float | None


SGD, HALF = {"optimizer": "sgd", "lr": 0.1}, 0.5
# fmt: off
MLPS = [
    #                                                     h0               own0             inherited  dL/dh
    Case("µP, Adam",              mlp("µP"),              (0, 0, -HALF),   (0, 0, 0),       0,         -1),
    Case("µP, Lion",              lion("µP"),             (0, 0, -HALF),   (0, 0, 0),       0,         -1),
    Case("µP, SGD",               mlp("µP", **SGD),       (0, 0, -HALF),   (0, 0, 0),       0,         -1),
    Case("SP, SGD",               mlp("SP", **SGD),       (0, 0, 0),       (-HALF, HALF, 1), 1,        -HALF),
    Case("SP, Adam",              mlp("SP"),              (0, 0, 0),       (0, 1, 1),       1.5,       -HALF),
    Case("SP, Lion",              lion("SP"),             (0, 0, 0),       (0, 1, 1),       1.5,       -HALF),
    Case("SP (PyTorch), SGD",     mlp("SP (PyTorch)", **SGD), (0, 0, 0),   (-HALF, HALF, 1), 1,        -HALF),
    Case("SP (PyTorch), Adam",    mlp("SP (PyTorch)"),    (0, 0, 0),       (0, 1, 1),       1.5,       -HALF),
    Case("NTK, SGD",              mlp("NTK", **SGD),      (0, 0, 0),       (-HALF, -HALF, 0), 0,       -HALF),
    Case("NTK, Adam",             mlp("NTK"),             (0, 0, 0),       (0, HALF, HALF), 1,         -HALF),
    Case("mean-field, SGD",       mlp("mean-field", **SGD), (0, 0, -HALF), (-1, -1, -1),    -1,        -1),
    Case("mean-field, Adam",      mlp("mean-field"),      (0, 0, -HALF),   (0, HALF, 0),    HALF,      -1),
    Case("SP, Muon",              muon("SP", lambda o, i: 1.0), (0, 0, 0), (-HALF, 0, HALF), HALF,     None),
    Case("SP, Muon √(out/in)",    muon("SP", lambda o, i: (o / i) ** 0.5), (0, 0, 0), (0, 0, 0), HALF, None),
    Case("SP, Muon √max(1,out/in)", muon("SP", lambda o, i: max(1, o / i) ** 0.5), (0, 0, 0), (0, 0, HALF), HALF, None),
    Case("SP, Muon √max(out,in)", muon("SP", lambda o, i: max(o, i) ** 0.5), (0, 0, 0), (0, HALF, 1), 1, None),
    Case("µP, Muon √(out/in)",    muon("µP", lambda o, i: (o / i) ** 0.5), (0, 0, -HALF), (0, 0, 0), 0, None),
]
# fmt: on
MATRICES = ("input.weight", "hidden.1.weight", "readout.weight")


class Tally:
    """Counts the entries that reach theory, and lists those that do not."""

    def __init__(self) -> None:
        self.total = 0
        self.far: list[str] = []

    def entry(self, what: str, theory: float | None, measured: float) -> str:
        """One entry as text: theory (measured)."""
        if theory is None:
            return "-"
        self.total += 1
        if not abs(measured - theory) <= NEAR:
            self.far.append(f"{what}: theory {theory:+.1f}, measured {measured:+.2f}")
        return f"{theory:+.1f} ({measured:+.2f})"


def slope_of(report: coordcheck.Report, layer: str, quantity: str, step: int) -> float:
    """One slope of a report; NaN where there is none."""
    table = report.slopes
    found = table[(table["layer"] == layer) & (table["quantity"] == quantity) & (table["step"] == step)]["slope"]
    return float(found.iloc[0]) if len(found) else math.nan


def diagnosed(case: Case, examples: int, widths: Sequence[int], seeds: int) -> coordcheck.Report:
    """The diagnosis of one case on a probe of so many examples."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(examples, 64, generator=generator), torch.randint(10, (examples,), generator=generator)
    return coordcheck.diagnose(
        {case.name: case.build}, batch, loss=F.cross_entropy, widths=widths, seeds=seeds, probe=batch
    )


def at_a_tenth(case: Case) -> Case:
    """The same with learning rates at which the largest own update at width 64 is a tenth of its output."""
    rows = diagnosed(case, 64, (64,), 1).measurements
    rows = rows[rows["layer"].isin(MATRICES)]
    scales = rows.groupby(["layer", "quantity", "step"])["value"].first().unstack(["quantity", "step"])
    ratio = float((scales["own_update", 1] / scales["output", 0].clip(lower=0.1)).max())

    def build(width: int) -> Any:
        model, optimizer = case.build(width)
        for group in optimizer.param_groups:
            group["lr"] *= 0.1 / ratio
        return model, optimizer

    return case._replace(build=build)


def mlp_table(widths: Sequence[int], seeds: int, tally: Tally) -> None:
    """Print the table of MLPs."""
    print(f"MLP, 3 hidden layers of ReLU, widths {widths}, {seeds} seeds: theory (measured)")
    print(f"{'':26}{'h0 in / hid / out':44}{'own0 in / hid / out':44}{'inherited out':16}dL/dh")
    for case in MLPS:
        report, on_many = diagnosed(case, 4, widths, seeds), diagnosed(at_a_tenth(case), 64, widths, seeds)
        table = report.parameters.set_index("layer")
        cells = {
            column: [
                tally.entry(f"{case.name}, {column} of {name}", value, float(table.loc[name, column]))
                for name, value in zip(MATRICES, theory, strict=True)
            ]
            for column, theory in (("gain_measured", case.initial), ("own_update", case.own))
        }
        inherited = tally.entry(
            f"{case.name}, inherited by the readout",
            case.inherited,
            float(on_many.parameters.set_index("layer").loc[MATRICES[2], "inherited"]),
        )
        gradient = tally.entry(f"{case.name}, dL/dh", case.gradient, slope_of(report, "hidden.0.weight", "gradient", 0))
        texts = [" / ".join(cells[quantity]) for quantity in ("gain_measured", "own_update")]
        print(f"{case.name:26}{texts[0]:44}{texts[1]:44}{inherited:16}{gradient}", flush=True)


BLOCK = "blocks.1."
# object: h0; own0 and change at t=1 in µP; own0 and change in SP (the last block's)
TRANSFORMER: Mapping[str, tuple[float, float, float, float, float]] = {
    "embedding": (0, 0, 0, 0, 0),
    BLOCK + "attention.query": (0, 0, 0, 1, 1),
    BLOCK + "attention.key": (0, 0, 0, 1, 1),
    BLOCK + "attention.value": (0, 0, 0, 1, 1),
    BLOCK + "attention.output": (0, 0, 0, 1, 1),
    BLOCK + "mlp.up": (0, 0, 0, 1, 1),
    BLOCK + "mlp.down": (0, 0, 0, 1, 1),
    "unembedding": (-0.5, 0, 0, 1, 1.5),  # in SP what it inherits grows faster than what it learns
}


def transformer_table(widths: Sequence[int], seeds: int, tally: Tally) -> None:
    """Print the table of Transformers under Adam."""
    tokens = torch.randint(64, (8, 33), generator=torch.Generator().manual_seed(0))
    options = {"vocabulary": 64, "context": 32, "gains": False, "activation": "relu", "lr": 2e-4}
    print(f"\nTransformer, 2 blocks, Adam, widths {widths}, {seeds} seeds: theory (measured)")
    print("h0 and own0 on 8 tokens; the change of the layer's output, which sums own and inherited, and dL/dh on 256")
    print(f"{'':26}{'h0 µP':16}{'own0 µP':16}{'change µP':16}{'h0 SP':16}{'own0 SP':16}change SP")
    reports = {
        name: coordcheck.check(
            {name: transformer(name, **options)},
            tokens,
            loss=next_byte_loss,
            widths=widths,
            seeds=seeds,
            steps=1,
            probe=tokens[:1, :9],
        )
        for name in ("µP", "SP")
    }
    for layer, (initial, own_mup, change_mup, own_sp, change_sp) in TRANSFORMER.items():
        theory = {
            "µP": (initial, own_mup, change_mup),
            "SP": (0 if layer == "unembedding" else initial, own_sp, change_sp),
        }
        cells = []
        for name, values in theory.items():
            measured = (
                slope_of(reports[name], f"{layer}.weight", "output", 0),
                slope_of(reports[name], f"{layer}.weight", "own_update", 1),
                slope_of(reports[name], layer, "change", 1),
            )
            for what, value, found in zip(("h0", "own0", "change"), values, measured, strict=True):
                cells.append(tally.entry(f"Transformer {name}, {what} of {layer}", value, found))
        print(f"{layer:26}" + "".join(f"{cell:16}" for cell in cells))
    whole = {
        name: coordcheck.diagnose(
            {name: transformer(name, **options)},
            tokens,
            loss=next_byte_loss,
            widths=widths,
            seeds=seeds,
            probe=tokens,
        )
        for name in ("µP", "SP")
    }
    for name, logits, gradient in (("µP", -0.5, -1.5), ("SP", 0.0, -0.5)):
        found = slope_of(reports[name], BLOCK + "attention/sdpa", "logits", 0)
        print(f"{name + ': attention logits':26}" + tally.entry(f"Transformer {name}, logits", logits, found), end="")
        weight = slope_of(whole[name], BLOCK + "mlp.down.weight", "gradient", 0)
        print("   dL/dh " + tally.entry(f"Transformer {name}, dL/dh", -1.0 if name == "µP" else -0.5, weight), end="")
        query = slope_of(whole[name], BLOCK + "attention.query.weight", "gradient", 0)
        print("   at queries " + tally.entry(f"Transformer {name}, dL/dq", gradient, query))


def main() -> int:
    """Print both tables and the entries that do not reach theory."""
    parser = argparse.ArgumentParser(description="Exponents of theory beside those measured.")
    parser.add_argument("--quick", action="store_true", help="small widths, few seeds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tally = Tally()
    widths, seeds = ((64, 128, 256, 512), 2) if options.quick else ((64, 128, 256, 512, 1024, 2048), 5)
    mlp_table(widths, seeds, tally)
    transformer_table(
        (64, 128, 256, 512) if options.quick else (64, 128, 256, 512, 1024), 2 if options.quick else 5, tally
    )
    print(f"\n{tally.total - len(tally.far)} of {tally.total} entries within {NEAR} of theory; the others:")
    print("\n".join(f"  {line}" for line in tally.far) or "  none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
