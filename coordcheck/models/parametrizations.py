"""Parametrizations as data: per parameter, how init, learning rate and multiplier scale with the width.

A parametrization says, for every role a parameter can have, three exponents of the width n:

    init standard deviation ~ n ** init      learning rate ~ n ** lr      forward multiplier ~ n ** multiplier

For a parameter whose fan-in grows, n stands for its own fan-in in `init` and `multiplier` (so 1/fan_in
normal init is `init = -1/2`); the learning rate is `lr_at_base * (width / base_width) ** lr`. Parameters
with a fixed fan-in have their constant beside their width exponent of 0: 1/sqrt(fan_in) for the input
matrix of an MLP, 1 for an embedding.

Sources:
    TP4: Yang & Hu 2021, "Feature Learning in Infinite-Width Neural Networks" (Tensor Programs IV),
        arXiv:2011.14522, table 1 (SP, NTK, mean field as abc-parametrizations).
    TP5: Yang et al. 2022, "Tensor Programs V", arXiv:2203.03466, table 3 (µP for SGD and Adam).
    Lingle: Lingle 2024, "A Large-Scale Exploration of µ-Transfer", arXiv:2404.05728, table 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from coordcheck.common.errors import CoordCheckError
from coordcheck.runs.names import same_label


class Rule(NamedTuple):
    """Width exponents of one parameter; all dimensionless."""

    init: float
    lr: float
    multiplier: float = 0.0


class Parametrization(NamedTuple):
    """One parametrization of one model family under one kind of optimizer."""

    name: str
    rules: Mapping[str, Rule]
    """By role, such as "input", "hidden", "readout" for an MLP."""
    attention: float = -0.5
    """Exponent of the head size D in the attention scale: 1/sqrt(D) or 1/D."""
    torch_init: bool = False
    """Keep the init of torch.nn's own modules instead of drawing normal weights and zero biases."""
    source: str = ""


def _mlp(
    name: str, source: str, *, input: Rule, hidden: Rule, readout: Rule, bias: Rule, **options: bool
) -> Parametrization:
    rules = {"input": input, "hidden": hidden, "readout": readout, "bias": bias, "readout bias": Rule(0, 0)}
    return Parametrization(name, rules, source=source, **options)


# fmt: off
_MLP = {
    #                                   init   lr  mult
    "sp": {"sgd": _mlp("SP", "TP4 table 1; 1/fan_in normal weights, zero biases",
        input=  Rule( 0.0,  0.0,  0.0),
        hidden= Rule(-0.5,  0.0,  0.0),
        readout=Rule(-0.5,  0.0,  0.0),
        bias=   Rule( 0.0,  0.0,  0.0))},
    "torch": {"sgd": _mlp("SP (PyTorch)", "torch.nn.Linear: uniform in +-1/sqrt(fan_in)", torch_init=True,
        input=  Rule( 0.0,  0.0,  0.0),
        hidden= Rule(-0.5,  0.0,  0.0),
        readout=Rule(-0.5,  0.0,  0.0),
        bias=   Rule(-0.5,  0.0,  0.0))},
    "ntk": {"sgd": _mlp("NTK", "TP4 table 1",
        input=  Rule( 0.0,  0.0,  0.0),
        hidden= Rule( 0.0,  0.0, -0.5),
        readout=Rule( 0.0,  0.0, -0.5),
        bias=   Rule( 0.0,  0.0,  0.0))},
    "mean-field": {"sgd": _mlp("mean-field", "TP4 table 1, hidden layers as NTK, learning rate constant "
                               "(times n it is µP under SGD)",
        input=  Rule( 0.0,  0.0,  0.0),
        hidden= Rule( 0.0,  0.0, -0.5),
        readout=Rule( 0.0,  0.0, -1.0),
        bias=   Rule( 0.0,  0.0,  0.0))},
    "mup": {"sgd": _mlp("µP", "TP5 table 3, SGD",
        input=  Rule( 0.0,  1.0,  0.0),
        hidden= Rule(-0.5,  0.0,  0.0),
        readout=Rule(-1.0, -1.0,  0.0),
        bias=   Rule( 0.0,  1.0,  0.0)),
            "adam": _mlp("µP", "TP5 table 3, Adam",
        input=  Rule( 0.0,  0.0,  0.0),
        hidden= Rule(-0.5, -1.0,  0.0),
        readout=Rule(-1.0, -1.0,  0.0),
        bias=   Rule( 0.0,  0.0,  0.0))},
}

# Transformer rows: M model width, H heads, D head size, F MLP width; M, H*D and F grow as n.
_ATTENTION_AND_MLP = ("query", "key", "value", "attention output", "mlp in", "mlp out")


def _transformer(name: str, source: str, *, embedding: Rule, hidden: Rule, unembedding: Rule, vector: Rule,
                 tied: float, **options: float | bool) -> Parametrization:
    rules = {"embedding": embedding, **dict.fromkeys(_ATTENTION_AND_MLP, hidden), "unembedding": unembedding,
             "gain": vector, "bias": vector, "unembedding bias": Rule(0, 0),
             "tied unembedding": Rule(0, 0, tied)}
    return Parametrization(name, rules, source=source, **options)  # type: ignore[arg-type]  # options by name


_TRANSFORMER = {
    #                                       init   lr  mult
    "sp": {"sgd": _transformer("SP", "1/fan_in normal weights, unit embeddings, one learning rate", attention=-0.5,
        embedding=  Rule( 0.0,  0.0,  0.0),
        hidden=     Rule(-0.5,  0.0,  0.0),
        unembedding=Rule(-0.5,  0.0,  0.0), tied=-0.5,
        vector=     Rule( 0.0,  0.0,  0.0))},
    "torch": {"sgd": _transformer("SP (PyTorch)", "the default init of torch.nn.Linear and torch.nn.Embedding",
                                  attention=-0.5, torch_init=True,
        embedding=  Rule( 0.0,  0.0,  0.0),
        hidden=     Rule(-0.5,  0.0,  0.0),
        unembedding=Rule(-0.5,  0.0,  0.0), tied=0.0,
        vector=     Rule(-0.5,  0.0,  0.0))},
    "ntk": {"sgd": _transformer("NTK", "TP4 table 1, row by row", attention=-0.5,
        embedding=  Rule( 0.0,  0.0,  0.0),
        hidden=     Rule( 0.0,  0.0, -0.5),
        unembedding=Rule( 0.0,  0.0, -0.5), tied=-0.5,
        vector=     Rule( 0.0,  0.0,  0.0))},
    "mean-field": {"sgd": _transformer("mean-field", "TP4 table 1, row by row; attention as in µP", attention=-1.0,
        embedding=  Rule( 0.0,  0.0,  0.0),
        hidden=     Rule( 0.0,  0.0, -0.5),
        unembedding=Rule( 0.0,  0.0, -1.0), tied=-1.0,
        vector=     Rule( 0.0,  0.0,  0.0))},
    "mup": {"sgd": _transformer("µP", "TP5 table 3, SGD", attention=-1.0,
        embedding=  Rule( 0.0,  1.0,  0.0),
        hidden=     Rule(-0.5,  0.0,  0.0),
        unembedding=Rule(-1.0, -1.0,  0.0), tied=-1.0,
        vector=     Rule( 0.0,  1.0,  0.0)),
            "adam": Parametrization("µP", attention=-1.0, source="Lingle table 1 (Adam)", rules={
                                        # init variance, Adam learning rate, as the table writes them
        "embedding":        Rule( 0.0,  0.0),  # WE   1         alpha
        "query":            Rule(-0.5, -1.0),  # WQ   1/M       alpha P/M
        "key":              Rule(-0.5, -1.0),  # WK   1/M       alpha P/M
        "value":            Rule(-0.5, -1.0),  # WV   1/M       alpha P/M
        "attention output": Rule(-0.5, -1.0),  # WO   1/(H D)   alpha P/M
        "mlp in":           Rule(-0.5, -1.0),  # WFI  1/M       alpha P/M
        "mlp out":          Rule(-0.5, -1.0),  # WFO  1/F       alpha P/M
        "unembedding":      Rule(-1.0, -1.0),  # WU   1/M^2     alpha P/M
        "gain":             Rule( 0.0,  0.0),  # TP5 table 3: vector-like, as input weights
        "bias":             Rule( 0.0,  0.0),
        "unembedding bias": Rule( 0.0,  0.0),
        "tied unembedding": Rule( 0.0,  0.0, -1.0),  # the embedding read out with a multiplier of 1/M
    })},
}
# fmt: on

FAMILIES = {"mlp": _MLP, "transformer": _TRANSFORMER}


def parametrization(family: str, name: str, optimizer: str) -> Parametrization:
    """The parametrization `name` of a model family ("mlp", "transformer") under "sgd" or "adam".

    Accepted names: "SP", "SP (PyTorch)" (or "torch"), "NTK", "mean-field", "µP" (or "mup"), in any case.

    Returns:
        The rules by role: the powers of the width of initialisation, learning rate and multiplier.

    Raises:
        CoordCheckError: another name.

    >>> parametrization("mlp", "µP", "adam").rules["hidden"]
    Rule(init=-0.5, lr=-1.0, multiplier=0.0)
    """
    table = FAMILIES[family]
    wanted = same_label(name).lower().replace("\u03bc", "mu")
    wanted = {"sp (pytorch)": "torch"}.get(wanted, wanted)
    if wanted not in table:
        known = ", ".join(rules["sgd"].name for rules in table.values())
        raise CoordCheckError(f"there is no parametrization {name!r}; known are {known}.")
    by_optimizer = table[wanted]
    # SP, NTK and mean-field fix the init and one constant learning rate, whatever the optimizer
    return by_optimizer.get(optimizer, by_optimizer["sgd"])
