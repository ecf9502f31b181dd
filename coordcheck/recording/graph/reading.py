"""Captured calls -> what is known of their parameters: multipliers, what feeds what, blocks, attentions.

A scalar that multiplies the input, the output or the parameter right beside a function belongs to that use: it does not
matter whether a multiplier stands inside a module or in the code around it. Everything here reads the graph; no model
is needed, and nothing is run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from coordcheck.recording.graph.arguments import unflattened
from coordcheck.recording.graph.attention import fused_arguments
from coordcheck.recording.graph.calls import Call, UseCall, Value
from coordcheck.recording.graph.flow import AttentionCall, Node
from coordcheck.recording.graph.functions import HANDS_ON, SUMS, Does, does, plain
from coordcheck.recording.graph.generated import MAKES_WEIGHTS, MAY_BE_A_WEIGHT, added_to, generators
from coordcheck.recording.graph.marks import NOTHING, Known, Mark, flow_of, summed, take_up
from coordcheck.recording.graph.roles import averages, by_own_norm, contracts, is_normed, summarizes
from coordcheck.recording.graph.splits import multiplied, take_apart


class Reading:
    """What is known of one forward pass.

    Args:
        calls: in the order in which they were made.

    Attributes:
        attentions: in the order of their softmax.
        products: all products of two activations, those of attentions that are not fused among them.
        skipped: calls that could not be read.
    """

    def __init__(self, calls: Iterable[Call]) -> None:
        self.attentions: list[AttentionCall] = []
        self.products: list[AttentionCall] = []
        self.skipped = Counter[str]()
        self._attended = set[AttentionCall]()
        self._marks: dict[Call, Mark] = {}
        self._last: dict[tuple[str, str], UseCall] = {}
        calls = list(calls)
        self.users: dict[Value, list[Call]] = {}
        """The calls that take a tensor."""
        for call in calls:
            for value in call.inputs.values():
                self.users.setdefault(value, []).append(call)
        for call in calls:
            try:
                self._marks[call] = self._use(call) if call.uses else self._follow(call)
            except Exception as error:  # of a call that is unlike all others; the rest is read
                self.skipped[f"{call.name} ({type(error).__name__})"] += 1
        for call in calls:
            self._note_weights(call)
        for product in {*self.attentions, *self.products}:
            product.settle()

    def _note_weights(self, call: Call) -> None:
        """Note the uses whose outputs are weights of a call, or may be."""
        for use in generators(call):
            use.unjudged = MAKES_WEIGHTS
        product = self._marks.get(call, NOTHING).product
        if product is not None and product not in self._attended:
            for use in added_to(call):
                use.unjudged = MAY_BE_A_WEIGHT

    def of(self, value: Value) -> Mark:
        """What is known of a tensor."""
        return NOTHING if value.call is None else self._marks.get(value.call, NOTHING)

    def outside(self, exits: Iterable[tuple[str, Value]]) -> dict[str, float]:
        """The scalar that multiplies a module's output outside of it, by path, where there is one.

        Args:
            exits: what modules gave, by path, call by call.
        """
        held = {path: mark.held for path, value in exits if (mark := self.of(value)).held}
        found = {}
        for path, uses in held.items():
            factors = {use.outside / factor for use, factor in uses if factor and use.outside}
            if len(factors) == 1:
                found[path] = factors.pop()
        return {path: factor for path, factor in found.items() if factor not in (0.0, 1.0)}

    def _follow(self, call: Call) -> Mark:
        """A function of activations hands on what is known of them."""
        take_apart(call)
        known = {position: self.of(value) for position, value in call.activations.items()}
        for rule in _RULES:
            mark = rule(self, call, known)
            if mark is not None:
                return mark
        take_up(known.values())
        return Mark(flow=flow_of(known))

    def chained(self, value: Value) -> float:
        """The scalar that a tensor is multiplied by before anything else becomes of it."""
        factor = 1.0
        while len(takers := self.users.get(value, [])) == 1:
            (taker,) = takers
            if len(taker.outputs) != 1:
                break
            moves = taker.view or does(taker.name, HANDS_ON)
            if taker.uses or (taker.factor is None and not moves):
                break
            factor *= 1.0 if taker.factor is None else taker.factor
            (value,) = taker.outputs
        return factor

    def _use(self, call: Call) -> Mark:
        """A function of activations and parameters."""
        known = {position: self.of(value) for position, value in call.activations.items()}
        for use in call.uses:
            mark = known.get(-1 if use.input_position is None else use.input_position, NOTHING)
            use.given, use.before = mark.held, mark.factor
            use.chained = self.chained(call.outputs[0])
            key = use.parameter, use.operation
            if key in self._last:  # what an earlier use feeds, its parameter feeds
                use.feeds |= self._last[key].feeds
            self._last[key] = use
        return self._after_use(call, known)

    def _after_use(self, call: Call, known: Mapping[int, Mark]) -> Mark:
        """What is known of the output of a function that uses parameters."""
        product = next((mark for mark in known.values() if mark.product), None)
        flow = flow_of(known)
        matrices = [use for use in call.uses if use.matrix]
        for node in flow:
            node.feeds.update(matrices)
        if call.factor is not None and len(known) == 1:  # a learned scalar acts with its initial value
            (mark,) = known.values()
            return mark.times(call.factor)
        if product is not None and does(call.name, Does.SCORES | Does.SCALES):  # a bias or temperature of logits
            return product._replace(flow=flow)
        if does(call.name, SUMS):  # a bias: the sum is still what it was
            return summed(list(known.values()))._replace(flow=flow)
        take_up(known.values(), cancelled=does(call.name, Does.CANCELS))
        held = tuple((use, 1.0) for use in matrices[:1] if use.linear)
        # what makes a weight is no layer: what it takes is taken up where that is used
        through = flow if call.outputs[0].modulated else frozenset[Node]()
        return Mark(held=held, flow=frozenset(matrices) | through or flow)

    def attend(self, mark: Mark) -> None:
        """Logits that a softmax makes probabilities of."""
        attention = mark.product
        if attention is not None and attention not in self._attended:
            self._attended.add(attention)
            attention.scale *= mark.factor
            attention.after = mark.factor
            attention.logits = None if attention.logits is None else attention.logits * mark.factor
            self.attentions.append(attention)


Rule = Callable[[Reading, Call, Known], "Mark | None"]
"""What is known of the output of a call, or None where the rule is about others."""


def _multiplied(reading: Reading, call: Call, known: Known) -> Mark | None:
    if call.factor is None:
        return None
    first = next(iter(known.values()), NOTHING)
    return next((mark for mark in known.values() if mark != NOTHING), first).times(call.factor)


def _moved(reading: Reading, call: Call, known: Known) -> Mark | None:
    if not does(call.name, HANDS_ON) and (call.in_place or not call.view):
        return None
    return next(iter(known.values()), NOTHING)


def _attended(reading: Reading, call: Call, known: Known) -> Mark | None:
    product = next((mark for mark in known.values() if mark.product), None)
    if product is None or not does(call.name, Does.SOFTMAXES):
        return None
    reading.attend(product)
    return Mark(flow=flow_of(known))


def _fused(reading: Reading, call: Call, known: Known) -> Mark | None:
    """A fused attention: its scale and its logits were taken when it was called."""
    if not does(call.name, Does.ATTENDS):
        return None
    given = fused_arguments(call.leaves, call.spec)
    scored, taken = [reading.of(given["query"]), reading.of(given["key"])], reading.of(given["value"])
    take_up(scored, contracted=True)
    take_up([taken])
    attention = AttentionCall(call.layer, plain(call.name))
    attention.head_size = int(given["query"].shape[-1])
    attention.made_by, attention.given = call, _positions(call)
    _measure_sides(attention, call, dict(zip(_positions(call), scored, strict=True)))
    attention.scale = call.scale * attention.before
    attention.logits = call.logits
    for node in scored[0].flow | scored[1].flow:
        node.feeds.add(attention)
    reading.attentions.append(attention)
    return Mark(flow=taken.flow | {attention})


def _product(reading: Reading, call: Call, known: Known) -> Mark | None:
    """A product of two activations: attention logits, if a softmax follows."""
    if not contracts(call):
        return None
    take_up(known.values(), contracted=True)
    left, right = list(known)[-2:]
    _, kwargs = unflattened(call.leaves, call.spec)
    fans = call.fans(right)
    attention = AttentionCall(call.layer, call.name)
    attention.head_size = max(1, fans.fan_in if fans else 1)
    attention.made_by, attention.given = call, (left, right)
    alpha = kwargs.get("alpha", 1) if does(call.name, Does.ADDED) else 1
    _measure_sides(attention, call, {left: known[left], right: known[right]})
    attention.scale = attention.before * float(alpha)
    attention.logits = call.logits
    flow = flow_of(known)
    for node in flow:
        node.feeds.add(attention)
    reading.products.append(attention)
    return Mark(product=attention, flow=flow | {attention})


def _measure_sides(attention: AttentionCall, call: Call, sides: Known) -> None:
    """A scalar behind a projection stands before the product; what else became of either side was measured."""
    for position, mark in sides.items():
        if mark.held or position not in call.sides or not is_normed(call.inputs[position]):
            attention.before *= mark.factor
            of_one = mark.held[0][0] if len(mark.held) == 1 else None
            attention.before *= multiplied(call.inputs[position], of_one) if isinstance(of_one, UseCall) else 1.0
            attention.projections += mark.held if len(mark.held) == 1 else ()
        else:
            attention.met = attention.met * call.sides[position]


def _positions(call: Call) -> tuple[int, int]:
    """Where queries and keys stand among the arguments of a fused attention."""
    given = fused_arguments(call.leaves, call.spec)
    places = {value: position for position, value in reversed(call.inputs.items())}
    return places[given["query"]], places[given["key"]]


def _scored(reading: Reading, call: Call, known: Known) -> Mark | None:
    product = next((mark for mark in known.values() if mark.product), None)
    return product._replace(flow=flow_of(known)) if product is not None and does(call.name, Does.SCORES) else None


def _summed(reading: Reading, call: Call, known: Known) -> Mark | None:
    if not does(call.name, SUMS) and not averages(call):
        return None
    return summed(list(known.values()))._replace(flow=flow_of(known))


def _normalized(reading: Reading, call: Call, known: Known) -> Mark | None:
    """A normalisation: what its input was multiplied by changes nothing."""
    at = by_own_norm(call)
    if at is None and not does(call.name, Does.CANCELS):
        return None
    take_up([known[at]] if at is not None else known.values(), cancelled=True)
    return Mark(flow=flow_of(known))


def _handed_on(reading: Reading, call: Call, known: Known) -> Mark | None:
    """A relu: a scalar behind it is one in front of it, of the matrices whose outputs it takes."""
    if not does(call.name, Does.HOMOGENEOUS) or len(known) != 1:
        return None
    (mark,) = known.values()
    take_up([mark])
    return Mark(
        flow=mark.flow, behind=(*((use, 1.0) for use, _ in mark.held if isinstance(use, UseCall)), *mark.behind)
    )


def _summarized(reading: Reading, call: Call, known: Known) -> Mark | None:
    """A mean of each row, or a step to its norm: not what the row is for, but as large as it is."""
    if len(known) != 1 or not summarizes(call, reading.users):
        return None
    (mark,) = known.values()
    return Mark(factor=mark.factor if does(call.name, Does.AVERAGES) else 1.0, flow=mark.flow)


def _tabled(reading: Reading, call: Call, known: Known) -> Mark | None:
    """A product with a table: rotary positions keep a scale."""
    held = [mark for mark in known.values() if mark.held]
    tables = [call.activations[position] for position, mark in known.items() if not mark.held]
    if not does(call.name, Does.SCALES) or len(held) != 1 or any(table.learns for table in tables):
        return None
    for use, _ in held[0].held:
        if call.along is not None and isinstance(use, UseCall):
            use.multiply(*call.along)
    return held[0]._replace(flow=flow_of(known))


_RULES: Sequence[Rule] = (
    *(_multiplied, _moved, _attended, _fused, _normalized, _product),
    *(_scored, _handed_on, _summarized, _summed, _tabled),
)
