"""What is part of a factory's fingerprint: all of the user's code that it reaches, and nothing that it does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

NET = """
from torch import nn
SCALE = 1.0
def act(x):
    return x.relu() * SCALE
class Block(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.linear = nn.Linear(n, n)
    def forward(self, x):
        return act(self.linear(x))
    @property
    def size(self):
        return self.linear.weight.numel() + 0
class Net(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.block = Block(n)
    def forward(self, x):
        return self.block(x)
"""
TRAIN = """
import torch
import net
from net import Net
RATE = 1e-3
def optimizer(model):
    return torch.optim.Adam(model.parameters(), RATE)
class Model(Net):
    def forward(self, x):
        return helper(super().forward(x))
def helper(x):
    return x * 2
def build(width):
    model = Model(width)
    return model, optimizer(model)
def build_by_module(width):
    model = net.Net(width)
    return model, optimizer(model)
def unrelated():
    return 7
"""
PRINT = """
import sys
sys.path.insert(0, ".")
import train
from coordcheck.fingerprints import describe_callable
print(describe_callable(train.build).split()[1], describe_callable(train.build_by_module).split()[1])
"""


def described(folder, changed: dict[str, tuple[str, str]]) -> list[str]:
    """The fingerprints of both factories in a process of their own, with some text of a file replaced."""
    for name, text in {"net.py": NET, "train.py": TRAIN}.items():
        before, after = changed.get(name, ("", ""))
        assert before in text
        (folder / name).write_text(text.replace(before, after) if before else text, encoding="utf-8")
    done = subprocess.run([sys.executable, "-B", "-c", PRINT], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("changed", "build", "by_module"),
    [
        ({}, False, False),
        ({"train.py": ("return 7", "return 8")}, False, False),
        ({"train.py": ("x * 2", "x * 3")}, True, False),
        ({"train.py": ("RATE = 1e-3", "RATE = 1e-4")}, True, True),
        ({"net.py": ("SCALE = 1.0", "SCALE = 2.0")}, True, True),
        ({"net.py": ("x.relu()", "x.tanh()")}, True, True),
        ({"net.py": ("numel() + 0", "numel() + 1")}, True, True),
        ({"net.py": ("return self.block(x)", "return self.block(x) + 1")}, True, True),
    ],
)
def test_all_of_the_users_code_that_is_reached_counts(tmp_path, changed, build, by_module):
    before, after = described(tmp_path, {}), described(tmp_path, changed)
    assert [a != b for a, b in zip(before, after, strict=True)] == [build, by_module]
