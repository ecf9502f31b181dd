"""Sizes and settings at several widths -> symbols: 4n×n, 0.001 × m^-1, and the role that shapes tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

from coordcheck.analysis.roles import GROWS, growth, override_of, role_of
from coordcheck.analysis.slopes import exponent_of
from coordcheck.checks.plans.blueprints import Drawn, Shape
from coordcheck.runs.repeats import pattern
from coordcheck.runs.words import Role

LARGEST_DENOMINATOR = 64  # of a size n*p/q + b
EXACT = 1e-3  # relative distance from a power of the width up to which a setting is that power
MIN_LINE = 3  # widths that say that sizes lie on a line n*p/q + b


def size_text(sizes: Mapping[int, int]) -> str:
    """How one axis depends on the width n, where it does so exactly; else its smallest and its largest size.

    >>> size_text({64: 256, 128: 512, 256: 1024}), size_text({64: 10, 128: 10}), size_text({64: 65, 128: 129, 256: 257})
    ('4n', '10', 'n+1')
    >>> size_text({64: 192, 128: 384, 256: 704})
    '192…704'
    """
    widths = sorted(sizes)
    if len(set(sizes.values())) == 1:
        return str(sizes[widths[0]])
    for power, symbol in ((1, "n"), (2, "n²")):
        factors = {Fraction(size, width**power) for width, size in sizes.items()}
        if len(factors) == 1:
            return _term(factors.pop(), symbol)
    squares = {Fraction(size**2, width) for width, size in sizes.items()}
    if len(squares) == 1:
        square = squares.pop()
        root = Fraction(math.isqrt(square.numerator), math.isqrt(square.denominator))
        if root**2 == square:
            return _term(root, "√n")
    return _line(sizes) or f"{min(sizes.values())}…{max(sizes.values())}"


def _term(factor: Fraction, symbol: str) -> str:
    times = "" if factor.numerator == 1 else str(factor.numerator)
    return f"{times}{symbol}" + ("" if factor.denominator == 1 else f"/{factor.denominator}")


def _line(sizes: Mapping[int, int]) -> str:
    """The sizes as n*p/q + b; empty where they do not lie on such a line, or are too few to tell."""
    (first, start), (last, end) = min(sizes.items()), max(sizes.items())
    rise = Fraction(end - start, last - first)
    offset = start - rise * first
    on_line = all(size == rise * width + offset for width, size in sizes.items())
    if len(sizes) < MIN_LINE or not on_line or rise <= 0 or rise.denominator > LARGEST_DENOMINATOR:
        return ""
    return f"{_term(rise, 'n')}{'+' if offset > 0 else ''}{offset}"


def is_regular(text: str) -> bool:
    """Whether a size is exactly a constant, a multiple or a power of the width, by its text."""
    return "…" not in text


def shape_text(shapes: Mapping[int, Shape | None]) -> str:
    """How a parameter's shape depends on the width n.

    >>> shape_text({64: (256, 64), 128: (512, 128), 256: (1024, 256)}), shape_text({64: (), 128: ()})
    ('4n×n', 'scalar')
    """
    known = {width: shape for width, shape in shapes.items() if shape is not None}
    if len(known) < len(shapes):
        return "not known yet"
    ranks = {len(shape) for shape in known.values()}
    if len(ranks) > 1:
        ends = min(known), max(known)
        return " → ".join("×".join(map(str, known[width])) or "scalar" for width in ends)
    axes = range(ranks.pop())
    texts = [size_text({width: shape[axis] for width, shape in known.items()}) for axis in axes]
    if len(texts) > 1:
        texts = [f"({text})" if "+" in text or "-" in text else text for text in texts]
    return "×".join(texts) or "scalar"


class Power(NamedTuple):
    """A setting against the width: base * m ** exponent, with m = width / base width."""

    base: float
    exponent: float
    """Fitted; NaN where the setting is 0 at some widths only."""
    values: tuple[float, ...]
    spread: float = 0.0
    """Largest relative distance of a value from the power."""

    @property
    def exact(self) -> bool:
        """Whether the power gives every value."""
        return not math.isnan(self.exponent) and self.spread <= EXACT

    @property
    def text(self) -> str:
        """The setting in short, such as `0.001 × m^-1`; its first and last value where it is no power."""
        if not self.exact:
            return f"{self.values[0]:.4g}…{self.values[-1]:.4g}"
        return f"{self.base:.4g}" + (f" × m^{self.exponent:.4g}" if self.exponent else "")


def power_of(settings: Mapping[int, float | None], base_width: int) -> Power | None:
    """A setting by width as a power of the width; None where no width has one.

    >>> power_of({64: 0.01, 128: 0.005, 256: 0.0025}, 64).text
    '0.01 × m^-1'
    """
    values = {width: value for width, value in sorted(settings.items()) if value is not None}
    if not values:
        return None
    listed = tuple(values.values())
    if len(set(listed)) == 1:
        return Power(listed[0], 0.0, listed)
    if not all(listed):
        return Power(listed[0], math.nan, listed)
    exponent = round(exponent_of(values), 4) + 0.0
    predicted = {width: (width / base_width) ** exponent for width in values}
    width = next(iter(values))
    base = values[width] / predicted[width]
    spread = max(abs(value / (base * predicted[at]) - 1) for at, value in values.items())
    return Power(base, exponent, listed, spread)


def roles_by_shape(
    parameters: Mapping[str, Mapping[int, Drawn]], overrides: Mapping[str, str] | None = None
) -> dict[str, Role | None]:
    """The role of every parameter, as far as its shapes, the kind of its module and the order of modules tell.

    A narrow parameter is told from a readout by a growing matrix that is registered after it: what the data flow
    tells in a diagnosis. Repeated blocks are narrow when one of them is.

    Args:
        parameters: name -> width -> parameter, in the order in which the model registers them.
        overrides: glob of parameter names -> role.

    Returns:
        None where the shapes do not tell: matrices with one growing axis in modules that are none of torch's own.
    """
    fans = {name: _fans(drawn) for name, drawn in parameters.items()}
    names = list(parameters)
    last = max((i for i, name in enumerate(names) if _is_wide(fans[name])), default=-1)
    followed = {pattern(name) for i, name in enumerate(names) if i < last and _only_inputs_grow(fans[name])}
    found: dict[str, Role | None] = {}
    for name, fan in fans.items():
        role = None if fan is None else role_of(*fan, pattern(name) in followed)
        found[name] = override_of(name, overrides) or role
    return found


class _Growth(NamedTuple):
    inputs: float
    outputs: float
    elementwise: bool = False


def _fans(drawn: Mapping[int, Drawn]) -> _Growth | None:
    """How both fans grow with the width; None where that is not known."""
    if any(one.shape is None for one in drawn.values()):
        return None
    fans = {width: one.fan for width, one in drawn.items() if one.fan is not None}
    if len(fans) == len(drawn):
        elementwise = any(fan.elementwise for fan in fans.values())
        inputs, outputs = ({width: fan[i] for width, fan in fans.items()} for i in (0, 1))
        return _Growth(growth(inputs), growth(outputs), elementwise)
    shapes = {width: one.shape for width, one in drawn.items() if one.shape is not None}
    if len({len(shape) for shape in shapes.values()}) > 1:
        return None
    axes = range(len(next(iter(shapes.values()))))
    grows = sorted((growth({width: shape[i] for width, shape in shapes.items()}) for i in axes), reverse=True)
    if grows[0] <= GROWS:
        return _Growth(0.0, 0.0)
    return _Growth(grows[1], grows[0]) if grows[1] > GROWS else None  # which of the two sums does not change the role


def _is_wide(fan: _Growth | None) -> bool:
    """A matrix whose fan-out grows: nothing that comes before it is a readout."""
    return fan is not None and not fan.elementwise and fan.outputs > GROWS


def _only_inputs_grow(fan: _Growth | None) -> bool:
    return fan is not None and not fan.elementwise and fan.inputs > GROWS and fan.outputs <= GROWS
