"""Reference models in SP, NTK, mean-field and µP: what the demo, the tests and the gallery train."""

from coordcheck.models.mlp import MLP, MLPConfig, mlp
from coordcheck.models.parametrizations import Parametrization, Rule, parametrization
from coordcheck.models.transformer import Transformer, TransformerConfig, transformer

__all__ = [
    "MLP",
    "MLPConfig",
    "Parametrization",
    "Rule",
    "Transformer",
    "TransformerConfig",
    "mlp",
    "parametrization",
    "transformer",
]
