"""What is part of a run's key: all that the user's code reads, and nothing that it does not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from coordcheck.training.fingerprints.fingerprint import describe_callable, fingerprint, read, settings_of

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


class Code:
    """Writes the user's files into a new folder, imports them from there, and forgets them again."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._place, self._patch, self._count = place, monkeypatch, 0

    def __call__(self, files: dict[str, str], use: str = "build") -> Any:
        self._count += 1
        folder = self._place / str(self._count)
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(textwrap.dedent(text), encoding="utf-8")
        for name in [name for name, module in sys.modules.items() if self._is_mine(module)]:
            del sys.modules[name]
        self._patch.chdir(folder)
        self._patch.setattr(sys, "path", [str(folder), *sys.path[-50:]])
        return getattr(__import__("train"), use)

    def _is_mine(self, module: Any) -> bool:
        return str(getattr(module, "__file__", None) or "").startswith(str(self._place))

    def forget(self) -> None:
        for name in [name for name, module in sys.modules.items() if self._is_mine(module)]:
            del sys.modules[name]


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Code]:
    made = Code(tmp_path, monkeypatch)
    yield made
    made.forget()


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
        ({"net.py": ("return x.relu()", "return x.relu()  # as in the paper")}, False, False),
    ],
)
def test_all_of_the_users_code_that_is_reached_counts(code: Code, changed, build, by_module):
    files = {"net.py": NET, "train.py": TRAIN}
    edited = {name: text.replace(*changed.get(name, ("", ""))) for name, text in files.items()}
    names = ("build", "build_by_module")
    before = [describe_callable(code(files, name)) for name in names]
    after = [describe_callable(code(edited, name)) for name in names]
    expected = [build or "# as" in str(changed), by_module or "# as" in str(changed)]  # comments are source, too
    assert [a != b for a, b in zip(before, after, strict=True)] == expected


# ---- the kinds of values that code reads: each is a file and what is edited in it

READ = {
    "dict": ("CFG = {'scale': 1.0}\ndef build(width): return CFG['scale']", "train.CFG"),
    "list": ("RATES = [1.0, 2.0]\ndef build(width): return RATES[0]", "train.RATES"),
    "set": ("NAMES = {'a', 1.0}\ndef build(width): return len(NAMES)", "train.NAMES"),
    "tuple": ("BETAS = (0.9, 1.0)\ndef build(width): return BETAS", "train.BETAS"),
    "long list": ("LONG = list(range(30000)) + [1.0]\ndef build(width): return LONG", "train.LONG"),
    "nested": ("CFG = {'model': {'layers': [{'scale': 1.0}]}}\ndef build(width): return CFG", "train.CFG"),
    "array": ("import numpy\nA = numpy.array([1.0])\ndef build(width): return A", "train.A"),
    "objects": ("import numpy\nA = numpy.array([1.0, 'a'], object)\ndef build(width): return A", "train.A"),
    "numpy number": ("import numpy\nA = numpy.float32(1.0)\ndef build(width): return A", "train.A"),
    "tensor": ("import torch\nA = torch.tensor([1.0])\ndef build(width): return A", "train.A"),
    "bfloat16": ("import torch\nA = torch.tensor([1.0]).bfloat16()\ndef build(width): return A", "train.A"),
    "module": (
        "import torch\nM = torch.nn.Linear(1, 1)\ntorch.nn.init.constant_(M.weight, 1.0); M.bias = None\n"
        "def build(width): return M",
        "train.M",
    ),
    "module's attribute": ("import torch\nM = torch.nn.Softplus(1.0)\ndef build(width): return M", "train.M"),
    "namespace": (
        "import types\nCFG = types.SimpleNamespace(scale=1.0)\ndef build(width): return CFG.scale",
        "train.CFG",
    ),
    "arguments": (
        "import argparse\nCFG = argparse.Namespace(scale=1.0)\ndef build(width): return CFG.scale",
        "train.CFG",
    ),
    "dataclass": (
        "import dataclasses\n@dataclasses.dataclass\nclass C:\n    scale: float = 3.0\nCFG = C(1.0)\n"
        "def build(width): return CFG.scale",
        "train.CFG",
    ),
    "dataclass default": (
        "import dataclasses\n@dataclasses.dataclass\nclass C:\n    scale: float = 1.0\n"
        "def build(width): return C().scale",
        "train.C.scale",
    ),
    "default factory": (
        "import dataclasses\n@dataclasses.dataclass\nclass C:\n"
        "    s: list = dataclasses.field(default_factory=lambda: [1.0])\ndef build(width): return C()",
        "build",
    ),
    "named tuple": (
        "import typing\nclass C(typing.NamedTuple):\n    scale: float\nCFG = C(1.0)\ndef build(width): return CFG",
        "train.CFG",
    ),
    "slots": (
        "class C:\n    __slots__ = ('scale',)\nCFG = C()\nCFG.scale = 1.0\ndef build(width): return CFG.scale",
        "train.CFG",
    ),
    "private attribute": (
        "class C:\n    def __init__(self, s): self._s = s\nCFG = C(1.0)\ndef build(width): return CFG",
        "train.CFG",
    ),
    "object in object": (
        "class C: pass\nCFG = C(); CFG.model = C(); CFG.model.scale = 1.0\ndef build(width): return CFG.model.scale",
        "train.CFG",
    ),
    "mapping of another kind": (
        "import collections\nclass C(collections.UserDict): pass\nCFG = C(scale=1.0)\n"
        "def build(width): return CFG['scale']",
        "train.CFG",
    ),
    "deque": ("import collections\nD = collections.deque([1.0])\ndef build(width): return D", "train.D"),
    "class attribute": ("class C:\n    scale = 1.0\ndef build(width): return C.scale", "train.C.scale"),
    "inherited attribute": (
        "class B:\n    scale = 1.0\nclass C(B): pass\ndef build(width): return C.scale",
        "train.B.scale",
    ),
    "property": ("class C:\n    @property\n    def s(self): return 1.0\ndef build(width): return C().s", "build"),
    "cached property": (
        "import functools\nclass C:\n    @functools.cached_property\n    def s(self): return 1.0\n"
        "def build(width): return C().s",
        "build",
    ),
    "class method": ("class C:\n    @classmethod\n    def s(cls): return 1.0\ndef build(width): return C.s()", "build"),
    "function attribute": ("def build(width): return build.scale\nbuild.scale = 1.0", "build"),
    "default argument": ("def build(width, scale=[1.0]): return scale", "build"),
    "keyword default": ("def build(width, *, scale=1.0): return scale", "build"),
    "closure": ("def make(scale):\n    def build(width): return scale\n    return build\nbuild = make([1.0])", "build"),
    "partial": (
        "import functools\ndef f(width, cfg): return cfg\nbuild = functools.partial(f, cfg={'scale': 1.0})",
        "build",
    ),
    "set by a function": (
        "S = 3\ndef put(x):\n    global S\n    S = x\ndef build(width): return S\nput(1.0)",
        "train.S",
    ),
    "cached function": (
        "import functools\n@functools.lru_cache\ndef scale(): return 1.0\ndef build(width): return scale()",
        "build",
    ),
    "what a cached function reads": (
        "import functools\nCFG = [1.0]\n@functools.cache\ndef scale(): return CFG[0]\ndef build(width): return scale()",
        "train.CFG",
    ),
    "enum": ("import enum\nclass E(enum.Enum):\n    A = 1.0\ndef build(width): return E.A.value", "build"),
    "enum member": (
        "import enum\nclass E(enum.Enum):\n    A = 2\n    B = 1.0\nM = E.B\ndef build(width): return M",
        "train.M",
    ),
    "decorator": (
        "import functools\ndef scaled(f):\n    @functools.wraps(f)\n    def g(*a): return 1.0 * f(*a)\n    return g\n"
        "@scaled\ndef build(width): return width",
        "build",
    ),
    "behind torch's decorator": (
        "import torch\nS = [1.0]\n@torch.no_grad()\ndef build(width): return S[0] * width",
        "train.S",
    ),
    "table of functions": ("F = {'a': lambda x: x * 1.0}\ndef build(width): return F['a'](width)", "train.F"),
    "object that is called": (
        "class B:\n    def __init__(self, s): self.s = s\n    def __call__(self, width): return self.s\n"
        "build = B([1.0])",
        "build",
    ),
    "bound method": (
        "class B:\n    def __init__(self, s): self.s = s\n    def f(self, width): return self.s\nbuild = B([1.0]).f",
        "build",
    ),
    "random state": (
        "import numpy\nR = numpy.random.default_rng(int(1.0))\ndef build(width): return R.normal()",
        "train.R",
    ),
    "inner function": (
        "CFG = [1.0]\ndef build(width):\n    return (lambda: [CFG[0] for _ in range(2)])()",
        "train.CFG",
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_a_value_that_code_reads_is_part_of_the_key_and_is_named(code: Code, kind: str):
    source, place = READ[kind]
    before, again = (settings_of(build=code({"train.py": source})) for _ in range(2))
    after = settings_of(build=code({"train.py": source.replace("1.0", "5.0")}))
    assert before == again
    changed = {name for name in before if before[name] != after[name]}
    assert f"reads {place}" in changed or place in changed


OTHERS = {
    "through a module": ("import config\ndef build(width): return config.CFG['x']", "config.CFG"),
    "through a package": ("import pack.config\ndef build(width): return pack.config.CFG['x']", "pack.config.CFG"),
    "under another name": ("import pack.config as c\ndef build(width): return c.CFG['x']", "pack.config.CFG"),
    "with a star": ("from config import *\ndef build(width): return CFG['x']", "train.CFG"),
    "imported inside": ("def build(width):\n    from config import CFG\n    return CFG['x']", "config.CFG"),
    "module imported inside": ("def build(width):\n    import config\n    return config.CFG['x']", "config.CFG"),
    "imported from inside": (
        "def build(width):\n    from pack import config\n    return config.CFG",
        "pack.config.CFG",
    ),
    "package imported inside": (
        "def build(width):\n    import pack.config\n    return pack.config.CFG",
        "pack.config.CFG",
    ),
    "imported by name": (
        "import importlib\nimport config\ndef build(width): return importlib.import_module('config').CFG",
        "config.CFG",
    ),
    "handed on whole": ("import config\ndef f(c): return c.CFG\ndef build(width): return f(config)", "config.CFG"),
    "read by a function of another": ("from config import scale\ndef build(width): return scale()", "config.CFG"),
    "read by its class": ("import config\ndef build(width): return config.Net().scale()", "config.CFG"),
}
CONFIG = "CFG = {'x': 1.0}\ndef scale(): return CFG['x']\nclass Net:\n    def scale(self): return scale()\n"


@pytest.mark.parametrize("kind", OTHERS)
def test_a_value_in_another_file_is_part_of_the_key_and_is_named(code: Code, kind: str):
    source, place = OTHERS[kind]
    files = {"train.py": source, "config.py": CONFIG, "pack/__init__.py": "", "pack/config.py": CONFIG}
    edited = {name: text.replace("1.0", "5.0") for name, text in files.items()}
    before, again, after = (settings_of(build=code(given)) for given in (files, files, edited))
    assert before == again
    assert {name for name in before if before[name] != after[name]} == {f"reads {place}"}


def test_what_a_module_holds_and_the_code_does_not_name_is_not_read(code: Code):
    source = "import config\nOTHER = {'x': 1.0}\ndef build(width): return config.scale\ndef f(): return OTHER"
    config = "UNUSED = {'x': 1.0}\ndef scale(): return 2\ndef other(): return UNUSED"
    one = settings_of(build=code({"train.py": source, "config.py": config}))
    two = settings_of(build=code({"train.py": source.replace("1.0", "5.0"), "config.py": config.replace("1.0", "5.0")}))
    assert one == two


# ---- the world around the code


def test_an_environment_variable_that_code_names_is_part_of_the_key(code: Code, monkeypatch: pytest.MonkeyPatch):
    source = """
        import os
        NAME = "SCALE_BY_NAME"
        def build(width):
            return os.environ.get("SCALE_OF_TEST", 1), os.getenv(NAME), "UNRELATED"
        def other():
            return "SCALE_OF_TEST"
    """
    build = code({"train.py": source})
    before = settings_of(build=build)
    monkeypatch.setenv("UNRELATED_TO_IT", "3")
    assert settings_of(build=build) == before
    monkeypatch.setenv("SCALE_OF_TEST", "3")
    assert set(settings_of(build=build)) - set(before) == {"reads environment SCALE_OF_TEST"}
    monkeypatch.setenv("SCALE_BY_NAME", "3")
    assert "reads environment SCALE_BY_NAME" in settings_of(build=build)


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("def build(width): return open('config.yaml').read()", "config.yaml"),
        ("FILE = 'config.yaml'\ndef build(width): return open(FILE).read()", "config.yaml"),
        ("CFG = {'file': 'config.yaml'}\ndef build(width): return open(CFG['file']).read()", "config.yaml"),
        (
            "from pathlib import Path\n"
            "def build(width): return (Path(__file__).parent / 'conf' / 'a.yaml').read_text()",
            "conf/a.yaml",
        ),
        ("def build(width): return open('conf/a.yaml').read()", "conf/a.yaml"),
    ],
)
def test_a_file_that_code_names_is_part_of_the_key(code: Code, source: str, file: str):
    before, again = (settings_of(build=code({"train.py": source, file: "scale: 1"})) for _ in range(2))
    after = settings_of(build=code({"train.py": source, file: "scale: 2"}))
    assert before == again
    assert [name for name in before if before[name] != after[name]] == [
        f"reads file {'a.yaml' if '__file__' in source else file}"
    ]


def test_a_file_that_code_writes_and_a_folder_are_told_and_not_compared(code: Code):
    source = """
        import os
        def build(width):
            with open("log.txt", "a") as file:
                file.write(str(width))
            return look()
        def look():
            return os.listdir("./data")
    """
    files = {"train.py": source, "log.txt": "1", "data/a": ""}
    before = settings_of(build=code(files))
    assert settings_of(build=code(files | {"log.txt": "12"})) == before
    assert {name for name in before if name.startswith("not compared")} == {
        "not compared: file log.txt",
        "not compared: folder ./data",
    }


def test_the_version_of_an_installed_package_is_part_of_the_key(code: Code):
    found = settings_of(build=code({"train.py": "import numpy as np\ndef build(width): return np.ones(width)"}))
    assert found["reads package numpy"] == np.__version__


def test_a_factory_that_is_installed_is_known_by_what_was_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`pip install .` after each edit, with the same version."""
    site, about = tmp_path / "site-packages", "installed_for_test-1.0.dist-info"
    (site / about).mkdir(parents=True)
    (site / about / "METADATA").write_text("Name: installed_for_test\nVersion: 1.0\n", encoding="utf-8")
    (site / "installed_for_test.py").write_text("def build(width): return width\n", encoding="utf-8")
    monkeypatch.syspath_prepend(site)
    build = __import__("installed_for_test").build
    told = []
    for content in ("1", "1", "2"):
        (site / about / "RECORD").write_text(f"installed_for_test.py,sha256={content},9\n", encoding="utf-8")
        told.append(settings_of(build=build))
    assert told[0] == told[1]
    assert {name for name in told[0] if told[0][name] != told[2][name]} == {"build"}
    assert told[0]["reads package installed_for_test"] == "1.0"


def test_a_file_that_was_edited_after_its_import_does_not_speak_for_what_runs(code: Code, tmp_path: Path):
    source = "def build(width):\n    return width * 1.0\n"
    build = code({"train.py": source})
    before, path = describe_callable(build), Path(sys.modules["train"].__file__ or "")
    path.write_text(source.replace("1.0", "5.0"), encoding="utf-8")
    os.utime(path, (time.time() + 5, time.time() + 5))
    old_code = describe_callable(build)
    edited = describe_callable(code({"train.py": source.replace("1.0", "5.0")}))
    assert old_code != edited
    assert before != edited


# ---- what must not change it

HEALTHY = {
    "only added to": "SEEN = []\ndef build(width):\n    SEEN.append(width)\n    return width",
    "counted": "CALLS = 0\ndef build(width):\n    global CALLS\n    CALLS += 1\n    return width",
    "cache of a function": (
        "import functools\n@functools.lru_cache\ndef f(x): return x\ndef build(width): return f(width)"
    ),
    "cached property": (
        "import functools\nclass C:\n    @functools.cached_property\n    def s(self): return 1\n"
        "CFG = C()\ndef build(width): return CFG.s"
    ),
    "logger": "import logging\nLOG = logging.getLogger('x')\ndef build(width):\n    LOG.warning('w')\n    return width",
    "lock": "import threading\nLOCK = threading.RLock()\ndef build(width):\n    with LOCK: return width",
    "global random state": "import random, torch\ndef build(width): return random.random() + torch.rand(())",
    "singledispatch": (
        "import functools\n@functools.singledispatch\ndef f(x): return x\n@f.register\ndef g(x: int): return x\n"
        "def build(width): return f(width)"
    ),
    "abstract class": (
        "import abc\nclass B(abc.ABC):\n    @abc.abstractmethod\n    def f(self): ...\nclass C(B):\n"
        "    def f(self): return 1\n"
        "def build(width): return isinstance(C(), B)"
    ),
    "weak cache": "import weakref\nCACHE = weakref.WeakKeyDictionary()\ndef build(width): return CACHE.get(build)",
    "functions of global random states": (
        "import torch\nfrom random import random, randint\nfrom numpy.random import rand\n"
        "def build(width): return random() + randint(0, 9) + rand() + torch.rand(())"
    ),
    "where it is printed": (
        "import rich.console, tqdm, sys\nCONSOLE, BAR, OUT = rich.console.Console(), tqdm.tqdm(total=3), sys.stdout\n"
        "def build(width):\n    CONSOLE.print(width)\n    BAR.update()\n    OUT.write('x')\n    return width"
    ),
    "other variables": "from os import environ\n"
    "def build(width):\n    environ['X_OF_TEST'] = '1'\n    return environ.get('Y')",
    "import inside": "def build(width):\n    import config\n    return config.X",
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_what_a_build_itself_keeps_does_not_change_its_key(code: Code, kind: str):
    build = code({"train.py": HEALTHY[kind], "config.py": "X = {'a': 1}"})
    before = settings_of(build=build)
    build(3)
    build(4)
    os.environ.pop("X_OF_TEST", None)
    assert settings_of(build=build) == before


def test_a_read_global_that_a_build_changes_is_told_by_name(code: Code):
    build = code({"train.py": "CFG = {'n': 0}\ndef build(width):\n    CFG['n'] += 1\n    return CFG['n']"})
    before = settings_of(build=build)
    build(3)
    after = settings_of(build=build)
    assert [name for name in before if before[name] != after[name]] == ["reads train.CFG"]


EVERYTHING = "\n".join(
    [
        "import enum, logging, os, pathlib, threading, torch, numpy",
        "class E(enum.Enum):\n    A = 1\n    B = 2",
        "class C:\n    kind = {E.A, E.B}\n    def __init__(self): self.me, self.f = self, C.g\n"
        "    def g(self): return self",
        "SET, FROZEN = {'a', 'b', 'c', 'd', (1, 2), E.A}, frozenset({'x', 'y', 'z'})",
        "TABLE = {one: object() for one in ('a', 'b')}",
        "OBJECT, LOCK, LOG, ROOT = C(), threading.Lock(), logging.getLogger('x'), pathlib.Path('a/b')",
        "RNG, WEIGHT, ARRAY = numpy.random.default_rng(0), torch.ones(3), numpy.arange(3)",
        "def build(width, default={1, 2, 3}):",
        "    if width in {'p', 'q', 'r'}: return None",
        "    return SET, FROZEN, TABLE, OBJECT, LOCK, LOG, ROOT, RNG, WEIGHT, ARRAY, os.getenv('HOME'), C, E",
    ]
)
PRINT = """
import sys
sys.path.insert(0, ".")
import train
from coordcheck.training.fingerprints.fingerprint import settings_of
print(sorted(settings_of(build=train.build).items()))
"""


def test_another_process_hash_seed_and_folder_give_the_same_key(tmp_path: Path):
    told = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        (folder / "train.py").write_text(EVERYTHING, encoding="utf-8")
        given = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", PRINT], cwd=folder, env=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
    assert told[0] == told[1]
    assert "not compared" not in told[0]


# ---- a fingerprint never raises


class Hostile:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    def __hash__(self) -> int:
        raise RuntimeError("hash")

    def __bool__(self) -> bool:
        raise RuntimeError("bool")

    def __len__(self) -> int:
        raise SystemExit(0)


class Undictionary:
    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise KeyError("no")

    def __reduce_ex__(self, version: Any) -> Any:
        raise SystemExit(3)


class Lying(dict):  # type: ignore[type-arg]
    def items(self) -> Any:
        raise ValueError("no items")


class Classless:
    __class__ = property(lambda self: 1 / 0)  # type: ignore[assignment]


class ClasslessFunction(Classless):
    def __call__(self) -> None: ...

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(1)


def nested(depth: int) -> list[Any]:
    value: list[Any] = [1.0, object()]
    for _ in range(depth):
        value = [value, object()]
    return value


def recursive() -> list[Any]:
    value: list[Any] = [object()]
    value.append({"me": value})
    return value


AWKWARD: list[Callable[[], Any]] = [
    *(Hostile, lambda: [Hostile()], lambda: {"a": Hostile()}, lambda: Hostile, Undictionary, lambda: Lying(a=1)),
    *(
        Classless,
        lambda: nested(10_000),
        recursive,
        lambda: (n for n in range(3)),
        lambda: iter([1]),
        lambda: sys.stdout,
    ),
    *(lambda: threading, lambda: torch.empty(3, device="meta"), lambda: torch.eye(3).to_sparse(), torch.Generator),
    *(lambda: nn.Linear(2, 2), lambda: nn.LazyLinear(3), lambda: torch.ones(2).to(torch.cfloat).conj()),
    *(
        lambda: torch.tensor([]),
        lambda: torch.zeros(3, dtype=torch.float8_e4m3fn),
        lambda: types.SimpleNamespace(a=Hostile()),
    ),
    *(lambda: np.zeros(0), lambda: np.zeros(3, "datetime64[s]"), lambda: partial(print), lambda: print, lambda: 1j),
    *(
        lambda: "\udcff",
        lambda: b"\xff",
        lambda: float("nan"),
        lambda: NotImplemented,
        lambda: Ellipsis,
        lambda: range(3),
    ),
    *(lambda: slice(3), lambda: memoryview(b"abc"), lambda: lambda: Hostile, lambda: Exception("x"), sys._getframe),
    *(
        lambda: dict([*sys.modules.items()][-100:]),
        threading.local,
        lambda: type,
        object,
        lambda: torch.quantize_per_tensor(*QUANTIZED),
    ),
]
QUANTIZED = torch.ones(3), 0.1, 0, torch.qint8


@pytest.mark.filterwarnings("ignore:.*quantize.*", "ignore:.*TypedStorage.*")
@pytest.mark.parametrize("number", range(len(AWKWARD)))
def test_a_fingerprint_never_raises_and_is_the_same_again(number: int):
    value = AWKWARD[number]()
    assert fingerprint(value) == fingerprint(value)
    assert describe_callable(value) == describe_callable(value)


def test_a_dict_that_another_thread_changes_meanwhile_has_a_fingerprint():
    changing: dict[int, int] = {}
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            changing[len(changing) % 1000] = len(changing)
            changing.pop(len(changing) // 2, None)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(50):
            fingerprint(types.SimpleNamespace(changing=changing))
    finally:
        stop.set()
        thread.join()


def test_what_has_no_state_that_can_be_read_is_told_by_name(code: Code):
    source = "FILE = open('train.py')\nGENERATOR = (n for n in range(3))\ndef build(width): return FILE, GENERATOR"
    found = settings_of(build=code({"train.py": source}))
    assert {name: why for name, why in found.items() if name.startswith("not compared")} == {
        "not compared: train.FILE": "TextIOWrapper tells nothing of its state (TypeError)",
        "not compared: train.GENERATOR": "generator tells nothing of its state (TypeError)",
    }


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ([object() for _ in range(30_000)], "holds more than 20000 values, or 60 inside each other"),
        ({object() for _ in range(30_000)}, "holds more than 20000 values"),
        (nested(100), "holds more than 20000 values, or 60 inside each other"),
    ],
)
def test_a_bound_that_is_hit_is_told(value: Any, why: str):
    assert list(read(value).unread.values()) == [why]


def test_of_very_large_data_samples_are_compared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("coordcheck.training.fingerprints.parts.WHOLE", 2**22)
    large = torch.zeros(2**23, dtype=torch.uint8)
    first = read(large)
    large[0] = 1
    assert read(large).text != first.text
    assert list(first.unread.values()) == [f"has {2**23} bytes, of which samples are compared"]


def test_many_functions_are_bounded_and_told(code: Code, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("coordcheck.training.fingerprints.fingerprint.MAX_CODE", 20)
    lines = [f"def f{n}(): return f{n + 1}()" for n in range(50)]
    found = read(code({"train.py": "\n".join([*lines, "def f50(): return 1", "build = f0"])}))
    assert found.unread == {"code": "reaches more than 20 functions"}


def plain(width: int) -> Any:
    return nn.Linear(width, width)


def through_torch(width: int) -> Callable[..., Any]:
    return torch.compile, np.linalg, nn.Transformer  # type: ignore[return-value]


def test_what_is_installed_costs_nothing_to_read():
    def cost(function: Any) -> float:
        began = time.process_time()
        for _ in range(5):
            fingerprint(function)
        return time.process_time() - began

    cost(plain)
    assert cost(through_torch) < 20 * cost(plain) + 0.1  # walking torch takes thousands of times as long
