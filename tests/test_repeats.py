"""Names of repeated blocks: as few as say exactly which there are."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordcheck.runs.repeats import ANY, PARTS, starred, together


def expanded(name: str) -> list[str]:
    """What a name with braces stands for, as a shell expands it."""
    parts = re.split(r"\{([^}]*)\}", name)
    choices = [[part] if place % 2 == 0 else listed(part) for place, part in enumerate(parts)]
    return ["".join(choice) for choice in product(*choices)]


def listed(braced: str) -> list[str]:
    """The numbers of `0..5,7` or `0..22..2`."""
    found: list[str] = []
    for run in braced.split(","):
        first, last, step = [*run.split(".."), "", ""][:3]
        found += map(str, range(int(first), int(last or first) + 1, int(step or 1)))
    return found


def test_a_name_alone_is_itself():
    assert together(["blocks.3.up.weight"]) == [("blocks.3.up.weight", ("blocks.3.up.weight",))]


def test_a_star_of_the_names_own_is_no_number():
    assert len({starred(name) for name in ("b.0", "b.*", "b.**")}) == 3


@pytest.mark.parametrize("numbers", [("0", "00"), ("9" * 5000, "1"), ("\u0663", "3")])
def test_numbers_that_are_written_in_other_ways_are_told_as_they_are(numbers: tuple[str, str]):
    ((name, names),) = together([f"b.{number}" for number in numbers])
    assert name == f"b.{{{','.join(numbers)}}}"
    assert len(names) == 2


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        (range(2), "b.{0,1}.up"),
        (range(3), "b.{0..2}.up"),
        ([0, 2, 4], "b.{0,2,4}.up"),
        (range(0, 24, 2), "b.{0..22..2}.up"),
        ([9, 10, 11, 40], "b.{9..11,40}.up"),
        (range(80), "b.{0..79}.up"),
    ],
)
def test_runs_of_numbers_are_ranges(numbers, name):
    assert [found for found, _ in together([f"b.{n}.up" for n in numbers])] == [name]


def test_a_full_grid_is_one_name_and_another_is_told_in_parts():
    grid = [f"layers.{i}.1.net.{k}.weight" for i, k in product(range(3), (0, 3))]
    assert [name for name, _ in together(grid)] == ["layers.{0..2}.1.net.{0,3}.weight"]
    names = [name for name, _ in together(grid[:-1])]
    assert names == ["layers.{0..2}.1.net.0.weight", "layers.{0,1}.1.net.3.weight"]


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(8, 12)), min_size=1))
def test_no_name_is_hidden_and_none_is_made_up(numbers):
    names = [f"a.{i}.b.{j}.c[{k}]" for i, j, k in numbers]
    found = together(names)
    assert sorted(name for one, _ in found for name in expanded(one)) == sorted(names)
    assert all(sorted(expanded(one)) == sorted(own) for one, own in found)


def test_numbers_inside_of_words_differ_only_where_they_may():
    assert starred("h.3.fc1[2]", PARTS) == "h.*.fc1[*]"
    assert starred("h.3.fc1[2]") == "h.*.fc*[*]"
    assert [name for name, _ in together(["layer-1", "layer-2"], ANY)] == ["layer-{1,2}"]
