"""Steps are counted without a model: which calls are recorded, and when it is over."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coordcheck.recording.step_counter import Inside, StepCounter


class Windows:
    """Windows that hold nothing but how many calls they have seen."""

    def __init__(self) -> None:
        self.recorded: dict[int, int] = {}
        self.step: int | None = 0
        self.calls = 0

    @property
    def is_open(self) -> bool:
        return self.step is not None

    @property
    def has_calls(self) -> bool:
        return self.calls > 0

    def open(self, step: int) -> None:
        self.step, self.calls = step, 0

    def close(self) -> None:
        assert self.step is not None
        self.recorded[self.step], self.step = self.calls, None

    def discard(self) -> None:
        self.calls = 0


class Loop:
    """A loop that counts with windows like these."""

    def __init__(self, steps: int = 2) -> None:
        self.windows = Windows()
        self.ends: list[int] = []
        self.counter = StepCounter(steps, self.windows, at_end=lambda: self.ends.append(self.counter.t))

    def call(self, layers: int = 1, *, trains: bool = True, raises: bool = False) -> None:
        """A call of the model, which calls its layers."""
        if self.counter.begin_call(trains=trains) and self.windows.is_open:
            self.windows.calls += layers
        if not raises:
            self.counter.end_call()

    def run(self, *events: Callable[[Loop], object]) -> dict[int, int]:
        """What was recorded: layers by step."""
        for event in events:
            event(self)
        return self.windows.recorded


def call(loop: Loop) -> None:
    loop.call()


def update(loop: Loop) -> None:
    loop.counter.update()


def evaluation(loop: Loop) -> None:
    loop.call(5, trains=False)


def failing(loop: Loop) -> None:
    loop.call(7, raises=True)


def checkpoint(loop: Loop) -> None:
    """Layers that are called without gradients, outside of a call of the model."""
    loop.windows.calls += 3
    loop.counter.doubtful = True


@pytest.mark.parametrize(
    ("events", "recorded"),
    [
        ([call, update, call, update, call], {0: 1, 1: 1, 2: 1}),
        ([call, call, update, call, call, update, call], {0: 1, 1: 1, 2: 1}),
        ([call, update, update, call, update, call], {0: 1, 1: 1, 2: 1}),
        ([update, call, update, call], {0: 1, 1: 1}),
        ([evaluation, call, evaluation, update, evaluation, call], {0: 1, 1: 1}),
        ([failing, call, update, failing, failing, call], {0: 1, 1: 1}),
        ([checkpoint, call, update, call], {0: 1, 1: 1}),
        ([checkpoint, update, call], {0: 3, 1: 1}),
        ([call, update, call, update, call, update, call], {0: 1, 1: 1, 2: 1}),
    ],
    ids=[
        *("plain", "micro-batches", "two optimizers", "an update before any call", "evaluation", "calls that raise"),
        *("layers before the model", "layers alone", "more updates than steps"),
    ],
)
def test_what_is_recorded(events, recorded):
    assert Loop().run(*events) == recorded


def test_it_ends_once_with_the_last_call_and_not_with_the_last_update():
    loop = Loop()
    loop.run(call, update, call, update)
    assert (loop.counter.done, loop.ends) == (False, [])
    loop.run(call, update, call)
    assert (loop.counter.done, loop.counter.ended, loop.ends) == (True, True, [2])
    loop.counter.end()
    assert loop.ends == [2]


def test_at_no_steps_it_ends_with_the_update_that_tells_the_learning_rates():
    loop = Loop(steps=0)
    loop.run(call)
    assert (loop.counter.done, loop.ends) == (True, [])
    loop.run(update)
    assert loop.ends == [1]


def test_what_ended_early_counts_no_further():
    loop = Loop()
    loop.run(call)
    loop.counter.end()
    loop.run(update, call, update)
    assert (loop.counter.t, loop.counter.recorded, loop.ends) == (0, 0, [0])


def test_evaluation_mode_counts_as_training_until_a_call_in_training_mode_was_seen():
    counter = Loop().counter
    calls = [(False, True), (False, False), (True, False), (False, True), (True, True), (False, True), (True, True)]
    seen = [counter.trains(training=training, gradients=gradients) for training, gradients in calls]
    assert seen == [True, False, False, True, True, False, True]


def test_where_it_is_has_a_name():
    counter = Loop().counter
    places = [counter.inside]
    for trains in (True, False):
        counter.begin_call(trains=trains)
        places.append(counter.inside)
        counter.end_call()
    assert [*places, counter.inside] == [Inside.NOTHING, Inside.TRAINING, Inside.OTHER, Inside.NOTHING]


def test_a_backward_pass_that_was_awaited_is_over_with_the_window():
    loop = Loop()
    loop.windows.calls, loop.counter.awaits_backward = 1, True
    loop.counter.close()
    assert (loop.counter.awaits_backward, loop.windows.recorded) == (False, {0: 1})
    loop.counter.close()
    assert loop.counter.recorded == 0
