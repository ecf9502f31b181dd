"""A config of `transformers` -> `build(width)`: the model that it describes, at every width."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from typing import Any

from coordcheck.common.errors import CoordCheckError
from coordcheck.common.extras import import_extra
from coordcheck.runs.arguments import suggestion

LEARNING_RATE = 1e-3
# the fields that grow with the width unless told otherwise, where a config has them
GROWING = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "moe_intermediate_size"),
    *("d_ff", "ffn_dim", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "time_step_rank"),
    *("encoder_attention_heads", "decoder_attention_heads"),
)


@dataclass(frozen=True)
class ConfigBuild:
    """What `huggingface` returns: called with a width, it gives a model and its optimizer."""

    config: Any
    scale: Mapping[str, float | None]
    base_width: int | None
    model: Any
    optimizer: Callable[[Any, int], Any] | None
    settings: str
    """Every setting of the config, also those that its fields do not hold, such as the kind of attention."""

    def __call__(self, width: int) -> tuple[Any, Any]:
        model = _make(self.model, self.config_at(width))
        if self.optimizer is not None:
            return model, self.optimizer(model, width)
        torch: Any = import_module("torch")
        return model, torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def config_at(self, width: int) -> Any:
        """The config at one width.

        Returns:
            A copy of the config, with the fields that grow.

        Raises:
            CoordCheckError: a field would not be a whole number of 1 or more.
        """
        config = copy.deepcopy(self.config)
        for field, factor in self.scale.items():
            _set(config, field, self._value(field, factor, width))
        for path in {field.rpartition(".")[0] for field in self.scale}:
            _keep_head_size_derived(_at(self.config, path), _at(config, path), path, self.scale)
        if getattr(config, "use_cache", None):  # one forward pass per update needs no keys and values of earlier ones
            config.use_cache = False
        return config

    def _value(self, field: str, factor: float | None, width: int) -> int:
        if factor is None:
            given, base = _at(self.config, field), int(self.base_width or 0)
            value, how = given * width / base, f"{given} at width {base}"
        else:
            value, how = factor * width, f"{factor:g} times the width"
        if value != int(value) or value < 1:
            raise CoordCheckError(
                f"{field} would be {value:g} at width {width} ({how}); it must be a whole number of 1 or more. Choose "
                f"widths that fit, such as multiples of {_step(factor, field, self)}, or another scale for {field}."
            )
        return int(value)


def huggingface(
    config: Any,
    scale: Mapping[str, float | None] | None = None,
    *,
    model: Any = None,
    optimizer: Callable[[Any, int], Any] | None = None,
    base_width: int | None = None,
) -> ConfigBuild:
    """A `build(width)` for `coordcheck.check`, from a config of `transformers`; nothing is downloaded.

    Args:
        config: the config; it is copied, never changed. Whatever does not grow (depth, vocabulary, number of experts)
            stays as it is in there: a small one is enough.
        scale: field -> factor for the fields that grow: value = factor * width. None instead of a factor keeps the
            field's ratio to the width, value = (its value in config) * width / base_width: as many heads as make the
            size of a head the same at every width. Fields of a config inside it are written with a dot
            (`text_config.hidden_size`). By default the usual fields of the width that the config has, each with the
            ratio that it has there. A head size that the config has computed itself follows.
        model: a model class of transformers (`AutoModelForCausalLM`, `LlamaForCausalLM`), or any function of the
            config. By default the class that `config.architectures` names, else the one for language modelling, else
            the bare model.
        optimizer: a function of (model, width), such as one that makes the groups of µP; by default AdamW with a
            learning rate of 1e-3 for everything, which is SP.
        base_width: the width that the config itself has; its hidden_size by default.

    Returns:
        The factory. A batch is what the model takes, such as `input_ids` and `labels`; no `loss` is needed.

    Raises:
        CoordCheckError: transformers is not installed, the config has no such field, or a factor is not positive.

    Source: which fields make the width, and why heads and not their size should grow: Yang et al. 2022
    (arXiv:2203.03466), appendix on the number of heads and the head size.

    Example::

        config = transformers.LlamaConfig(hidden_size=256, intermediate_size=512, num_attention_heads=8,
                                          num_hidden_layers=2, vocab_size=1000)
        coordcheck.check(huggingface(config), {"input_ids": ids, "labels": ids}, widths=(64, 128, 256))
    """
    _transformers()
    if scale is None:
        scale = {field: None for field in GROWING if isinstance(getattr(config, field, None), int)}
    if not isinstance(scale, Mapping) or not scale:
        raise CoordCheckError(
            "scale must name the fields of the config that grow with the width, such as "
            f'{{"hidden_size": 1, "intermediate_size": 4, "num_attention_heads": None}}; got {scale!r:.60}.'
        )
    for field, factor in scale.items():
        _check_field(config, field, factor)
    base = getattr(config, "hidden_size", None) if base_width is None else base_width
    if None in scale.values() and not (isinstance(base, int) and base > 0):
        raise CoordCheckError("the config has no hidden_size: give base_width=, the width that the config itself has.")
    config = copy.deepcopy(config)
    described = {"attention": config._attn_implementation, **config.to_dict()}
    settings = json.dumps(described, sort_keys=True, default=repr)
    return ConfigBuild(config, dict(scale), base, model or _model_of(config), optimizer, settings)


def _transformers() -> Any:
    return import_extra("transformers", extra="hf", purpose="huggingface")


def _check_field(config: Any, field: str, factor: object) -> None:
    """Refuse a field that the config does not have, one that is no size, and a factor that is none."""
    path, _, name = field.rpartition(".")
    holder = _at(config, path)
    known = [*holder.to_dict(), *getattr(holder, "attribute_map", {})] if hasattr(holder, "to_dict") else []
    if name not in known:
        kind = type(holder).__name__
        raise CoordCheckError(f"{kind} has no field {field!r}{suggestion(name, known)}: it would change nothing.")
    if factor is not None and (isinstance(factor, bool) or not isinstance(factor, (int, float)) or not factor > 0):
        raise CoordCheckError(f"scale of {field} must be a positive number or None, got {factor!r:.40}.")
    if factor is None and not isinstance(getattr(holder, name), int):
        raise CoordCheckError(
            f"{field} is {getattr(holder, name)!r:.40} in the config: give its factor in scale, not None."
        )


def _at(config: Any, path: str) -> Any:
    """The config, or what a dotted path leads to inside it."""
    return reduce(lambda found, name: getattr(found, name, None), path.split("."), config) if path else config


def _set(config: Any, field: str, value: int) -> None:
    path, _, name = field.rpartition(".")
    setattr(_at(config, path), name, value)


def _keep_head_size_derived(given: Any, config: Any, path: str, scale: Mapping[str, Any]) -> None:
    """Configs write down hidden_size / num_attention_heads when they are made: it follows the new sizes."""
    if f"{path}.head_dim".lstrip(".") in scale or not isinstance(getattr(given, "head_dim", None), int):
        return
    sizes = [(getattr(c, "hidden_size", None), getattr(c, "num_attention_heads", None)) for c in (given, config)]
    (width, heads), (new_width, new_heads) = sizes
    if heads and new_heads and given.head_dim * heads == width:
        config.head_dim = new_width // new_heads


def _step(factor: float | None, field: str, build: ConfigBuild) -> int:
    """The smallest width at which a field is a whole number."""
    base, given = int(build.base_width or 1), _at(build.config, field)
    ratio = given / base if factor is None else factor
    return next((width for width in range(1, base + 1) if float(ratio * width).is_integer()), base)


def _model_of(config: Any) -> Any:
    """The class that the config names, else that of a language model, else the bare model."""
    transformers = _transformers()
    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    language = type(config) in transformers.AutoModelForCausalLM._model_mapping
    return transformers.AutoModelForCausalLM if language else transformers.AutoModel


def _make(model: Any, config: Any) -> Any:
    """A model of a class of transformers, of one of its Auto classes, or of the user's function."""
    automatic = getattr(model, "_model_mapping", None) is not None
    return model.from_config(config) if automatic else model(config)
