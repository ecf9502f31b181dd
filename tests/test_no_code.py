"""Nothing that the package reads is ever run: no pickle, no eval, no loader that runs code."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

import coordcheck
from coordcheck.common.errors import RunFileError
from coordcheck.pytest_plugin.baselines.files import read_baseline

PACKAGE = Path(coordcheck.__file__).parent
PAYLOADS = {"payloads.py"}
"""Where a check's own functions go to its own worker processes, as pickle: nothing that lay in a file."""
UNPICKLERS = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "pandas.read_pickle",
}
LOADERS = {"load", "loads", "Unpickler", "open", "read_pickle"}
RUNS_CODE = {"eval", "exec", "__import__", "execfile"}


def dangers(source: str) -> Iterator[str]:
    """The calls in a source that run what they are given, or may."""
    tree = ast.parse(source)
    names = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    aliases = {
        alias.asname: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.asname
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        first, _, rest = called.partition(".")
        called = names.get(called) or (f"{aliases.get(first, names.get(first, first))}.{rest}" if rest else called)
        owner, _, name = called.rpartition(".")
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if (
            (owner in ("", "builtins") and name in RUNS_CODE)
            or (owner in UNPICKLERS and name in LOADERS)
            or name in ("read_pickle", "Unpickler")
            or (called == "torch.load" and keywords.get("weights_only") != "True")
            or (called in ("numpy.load", "np.load") and keywords.get("allow_pickle", "False") != "False")
            or (owner == "os" and name in ("system", "popen"))
            or (owner == "yaml" and name in ("load", "unsafe_load", "full_load"))
            or keywords.get("shell") == "True"
        ):
            yield called


@pytest.mark.fault(60)
@pytest.mark.fault(61)
@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_runs_what_it_reads(path: Path):
    found = list(dangers(path.read_text(encoding="utf-8")))
    assert (found != []) is (path.name in PAYLOADS), found


@pytest.mark.parametrize(
    "source",
    [
        *("pickle.load(file)", "import pickle as p\np.loads(data)", "from pickle import load as l\nl(file)"),
        *("cloudpickle.loads(data)", "pickle.Unpickler(file).load()", "pd.read_pickle(path)", "torch.load(path)"),
        *(
            "torch.load(path, weights_only=False)",
            "from torch import load\nload(path)",
            "np.load(path, allow_pickle=True)",
        ),
        *("eval(text)", "builtins.exec(text)", "__import__(name)", "os.system(text)"),
        *("subprocess.run(text, shell=True)", "yaml.load(text)", "marshal.loads(data)", "shelve.open(path)"),
        *("from os import popen\npopen(text)", "joblib.load(path)", "def f():\n    return [eval(x) for x in y]"),
    ],
)
def test_the_gate_sees_what_runs_code(source: str):
    assert len(list(dangers(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        *("json.load(file)", "json.loads(text)", "model.eval()", "re.compile(pattern)", "path.open()", "open(path)"),
        *(
            "torch.load(path, weights_only=True)",
            "pickle.dumps(value)",
            "np.load(path)",
            "torch.compile(model)",
            "compile(source, '', 'exec')",
        ),
        *("importlib.import_module(name)", "coordcheck.load(folder)", "ast.literal_eval(text)", "subprocess.run([a])"),
        "compile(source, '', 'exec')",
    ],
)
def test_the_gate_lets_the_rest_through(source: str):
    assert list(dangers(source)) == []


class Bomb:
    """Leaves a file where it was unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.fault(60)
def test_a_pickle_in_the_place_of_a_file_is_not_opened(tmp_path: Path):
    bomb = pickle.dumps(Bomb(tmp_path / "gone off"))
    assert pickle.loads(bomb) is None
    assert (tmp_path / "gone off").exists()  # it is a real one
    (tmp_path / "gone off").unlink()
    for name in ("runs/SP/64-0.json", "experiment.json", "baseline.json", ".writers/1.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bomb)
    with pytest.raises(RunFileError):
        coordcheck.load(tmp_path)
    with pytest.raises(RunFileError):
        read_baseline(tmp_path / "baseline.json")
    body = json.dumps({"format": "coordcheck run", "schema": 1, "content": {"label": bomb.decode("latin-1")}})[:-1]
    (tmp_path / "runs/SP/64-0.json").write_text(
        f'{body.replace(", ", ",").replace(": ", ":")},"sha256":"{hashlib.sha256(b"").hexdigest()}"}}\n'
    )
    with pytest.raises(RunFileError):
        coordcheck.load(tmp_path)
    assert not (tmp_path / "gone off").exists()
