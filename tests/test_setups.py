"""The circumstances of a run change nothing: locale, environment, folders, streams, interpreter, user.

One tiny check, as a command, in worlds that have many odd circumstances each: every world gives the same answer.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from conftest import pair_batch, sampled

import coordcheck
from coordcheck.cli.main import main
from coordcheck.models import mlp

PACKAGE = Path(coordcheck.__file__).parent
TRAIN = """
import torch
from torch import nn

def build(width):
    model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)

class Building:
    µP = staticmethod(build)

generator = torch.Generator().manual_seed(0)
batch = torch.randn(8, 8, generator=generator), torch.arange(8) % 4
"""
FILES = ("figure µ.png", "page µ.html")
LOSS = ("--batch", "train.py:batch", "--loss", "torch.nn.functional:cross_entropy")
SMALL = ("--widths", "16", "32", "64", "--seeds", "1", "--steps", "1")
RUN = (
    *("-m", "coordcheck", "run", "SP=train.py:build", "µP=train.py:Building.µP", *LOSS, *SMALL),
    *("--save-to", "runs µ", "--figure", FILES[0], "--html", FILES[1], "--format", "json"),
)
WITH_WORKERS = (
    *("-m", "coordcheck", "run", "µP=train.py:build", *LOSS, *SMALL),
    *("--probe", "none", "--jobs", "2", "--save-to", "runs µ"),
)
NOWHERE = "/proc/no such folder"  # cannot be made, whoever asks


@dataclass
class World:
    """Circumstances of one process."""

    environment: dict[str, str] = field(default_factory=dict)  # nothing else is in it
    flags: tuple[str, ...] = ()  # of the interpreter
    before: tuple[str, ...] = ()  # the command that starts the interpreter
    shell: str = ""  # redirections
    umask: int = -1


# root may read and write everywhere; this is somebody else, who may read what root may, and writes nowhere but here
SOMEBODY = (
    *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
    *("--inh-caps", "-all,+dac_read_search", "--ambient-caps", "-all,+dac_read_search"),
)
WORLDS = {
    "no µ, no home, nowhere to write": World(
        {
            **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
            **{"HOME": NOWHERE, "TMPDIR": NOWHERE, "MPLCONFIGDIR": NOWHERE, "XDG_CACHE_HOME": NOWHERE},
            # without a display, matplotlib's window of this name cannot be opened: figures must not need one
            **{"MPLBACKEND": "TkAgg", "NO_COLOR": "1", "PYTHONHASHSEED": "1"},
        },
        umask=0o077,
    ),
    "another user, isolated, warnings are errors": World(
        {"HOME": "/root", "COLUMNS": "20", "TERM": "dumb", "FORCE_COLOR": "1", "PYTHONHASHSEED": "2"},
        flags=("-I", "-W", "error"),
        before=SOMEBODY,
    ),
}
CLOSED = World(shell="<&- >&- 2>&-")


def lived(world: World, project: Path, command: tuple[str, ...] = RUN) -> subprocess.CompletedProcess[bytes]:
    """The process, in a project."""
    words = [*world.before, sys.executable, *world.flags, *command]
    if world.shell:
        words = ["sh", "-c", f'"$@" {world.shell}', "sh", *words]
    environment = {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], **world.environment}
    return subprocess.run(
        words, cwd=project, env=environment, capture_output=True, timeout=300, umask=world.umask, check=False
    )


def a_project(folder: Path) -> Path:
    """A user's project in a folder whose name is no single ASCII word, reached through a link."""
    real = folder / "my µ project"
    real.mkdir(parents=True)
    (real / "train.py").write_text(TRAIN, encoding="utf-8")
    link = folder / "a link"
    link.symlink_to(real, target_is_directory=True)
    return link


def answer(project: Path) -> dict[str, Any]:
    """All that the run files in a project say, but how long it took."""
    told: dict[str, Any] = json.loads(coordcheck.load(project / "runs µ").to_json())
    for run in told["runs"]:
        assert run.pop("seconds") > 0
    return told


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> dict[str, Any]:
    """The same command in this process."""
    project = a_project(tmp_path_factory.mktemp("usual"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setattr(sys, "path", [*sys.path])
        assert main(list(RUN[2:])) == 1
        patch.delitem(sys.modules, "train")
    return answer(project)


@pytest.mark.fault(62)
@pytest.mark.fault(63)
@pytest.mark.parametrize("name", sampled(list(WORLDS), 2))
def test_a_check_answers_alike_in_every_world(tmp_path, usual, name):
    world = WORLDS[name]
    project = a_project(tmp_path)
    if world.before:
        if os.geteuid() != 0 or shutil.which(world.before[0]) is None:
            pytest.skip("only root, with setpriv of util-linux, can become somebody else")
        for path in (tmp_path, *tmp_path.parents[:3]):  # the folders of pytest are root's own
            path.chmod(0o755)
        for path in (project.resolve(), project.resolve() / "train.py"):
            os.chown(path, 65534, 65534)
    done = lived(world, project)
    assert done.returncode == usual["exit_code"], done.stderr.decode(errors="replace")
    assert answer(project) == usual  # the code's fingerprint in every run's settings, and the last digit of each scale
    assert json.loads(done.stdout.decode("utf-8"))["status"] == usual["status"]
    for path in FILES:
        assert (project / path).stat().st_size > 10_000
    if world.umask >= 0:
        modes = {stat.S_IMODE(path.stat().st_mode) for path in project.resolve().rglob("*.json")}
        assert modes == {0o600}


def test_closed_streams_do_not_keep_workers_from_training(tmp_path):
    project = a_project(tmp_path)
    done = lived(CLOSED, project, WITH_WORKERS)
    told = answer(project)
    assert (done.returncode, done.stdout, done.stderr) == (told["exit_code"], b"", b"")
    assert [(run["width"], run["outcome"]) for run in told["runs"]] == [(w, "finished") for w in (16, 32, 64)]


def test_a_world_is_what_it_says(tmp_path):
    """Where this fails, the worlds above are ordinary ones, and prove nothing."""
    tell = "import sys; print(sys.flags.isolated, sys.getfilesystemencoding(), sys.stdout.encoding)"
    poor, isolated = (lived(WORLDS[name], tmp_path, ("-c", tell)).stdout.decode().split() for name in WORLDS)
    assert poor == ["0", "ascii", "ascii"]
    assert isolated[0] == "1" or shutil.which(SOMEBODY[0]) is None
    assert lived(CLOSED, tmp_path, ("-c", tell)).stdout == b""
    with pytest.raises(OSError, match="no such folder"):
        Path(NOWHERE).mkdir()


def test_nothing_leans_on_asserts_or_docstrings():
    """Python's -O takes the ones away, -OO the others."""
    leaning = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "common/docstrings.py"  # completes those that there are
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
        or (
            isinstance(node, (ast.Name, ast.Attribute))
            and "__doc__" in (getattr(node, "id", ""), getattr(node, "attr", ""))
        )
    ]
    assert leaning == []


@pytest.mark.thorough
def test_every_public_name_is_there_without_docstrings(tmp_path):
    code = "import coordcheck as c; print([getattr(c, n) for n in c.__all__] and c.diagnose.__doc__)"
    done = lived(World(flags=("-OO",)), tmp_path, ("-c", code))
    assert done.stdout.split() == [b"None"], done.stderr.decode()


def test_the_package_is_read_from_a_zip_file(tmp_path, report):
    """As some clusters ship it: templates, schema and all are read from within the archive."""
    report.save(tmp_path / "runs")
    shutil.make_archive(str(tmp_path / "coordcheck"), "zip", PACKAGE.parent, "coordcheck")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import coordcheck; from coordcheck.cli.main import main; "
        "assert '.zip' in coordcheck.__file__; raise SystemExit(main(['report', 'runs', 'page.html']))"
    )
    world = World({"PYTHONDONTWRITEBYTECODE": "1"})
    done = lived(world, tmp_path, ("-I", "-c", code, str(tmp_path / "coordcheck.zip")))
    assert done.returncode == 1, done.stderr.decode()
    assert "<svg" in (tmp_path / "page.html").read_text(encoding="utf-8")


UNIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios"}
UNIX_NAMES = {
    "os": {
        "fork",
        "forkpty",
        "getuid",
        "geteuid",
        "killpg",
        "setsid",
        "sched_getaffinity",
        "statvfs",
        "uname",
        "mkfifo",
    },
    "signal": {"SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGCHLD", "setitimer", "alarm", "pthread_kill"},
}


def taken_for_granted(source: str) -> set[str]:
    """What only Unix has, and a source names as if it were everywhere; `getattr` and `hasattr` ask first."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & UNIX_MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} & UNIX_MODULES
            found |= {alias.name for alias in node.names} & UNIX_NAMES.get(node.module or "", set())
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {node.attr} & UNIX_NAMES.get(node.value.id, set())
    return found


def test_nothing_that_only_unix_has_is_taken_for_granted():
    sources = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    found = {str(path.relative_to(PACKAGE)): taken_for_granted(source) for path, source in sources.items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_what_only_unix_has_is_seen():
    assert taken_for_granted("import fcntl\nfrom os import fork\nsignal.SIGHUP") == {"fcntl", "fork", "SIGHUP"}
    assert taken_for_granted("getattr(signal, 'SIGHUP', None)\nimport os") == set()


@pytest.mark.fault(65)
def test_clock_host_and_process_are_no_part_of_a_runs_key(tmp_path, monkeypatch):
    def check(**options: Any) -> coordcheck.Report:
        settings = {"loss": F.cross_entropy, "widths": (16, 32, 64), "seeds": 1, "steps": 1, "probe": None}
        return coordcheck.check({"µP": mlp("µP")}, pair_batch(), **{**settings, **options}, save_to=tmp_path)

    assert not any(record.found for record in check().records)
    for place, changed in {
        "time.time": 0.0,
        "time.time_ns": 0,
        "os.getpid": 1,
        "os.getppid": 1,
        "os.cpu_count": 64,
        "socket.gethostname": "elsewhere",
        "platform.node": "elsewhere",
        "platform.platform": "another machine",
        "getpass.getuser": "somebody",
    }.items():
        monkeypatch.setattr(place, lambda changed=changed: changed)
    for name in ("HOSTNAME", "USER", "HOME", "SLURM_JOB_ID", "RANDOM"):
        monkeypatch.setenv(name, "/another")
    assert all(record.found for record in check().records)
    with pytest.raises(coordcheck.CoordCheckError, match="steps"):  # a setting is part of it
        check(steps=2)
