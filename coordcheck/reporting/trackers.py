"""A report in an experiment tracker: TensorBoard, Weights & Biases, MLflow or trackio, none of which is imported here.

The signatures used are those of tensorboard 2.21 (as in torch 2.13), wandb 0.31, mlflow 3.17 and trackio 0.43.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from html import escape
from importlib import import_module
from inspect import ismodule
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pandas as pd

from coordcheck.analysis.result import Result
from coordcheck.analysis.verdicts import Verdict
from coordcheck.common.errors import CoordCheckError
from coordcheck.common.escaping import printable
from coordcheck.common.redaction import redacted
from coordcheck.reporting.figures import KINDS, draw, save_figure
from coordcheck.reporting.summaries import counts
from coordcheck.reporting.text import plain
from coordcheck.runs.files import slug

ACCEPTED = (
    "a TensorBoard SummaryWriter, a W&B run (or the module wandb), the module mlflow, a pair (MlflowClient, run id), "
    "a trackio run (or the module trackio), or a Lightning logger of one of these"
)


class Content(NamedTuple):
    """What is logged of a report."""

    scalars: dict[str, float]
    """Per label how many layers are violated and how many parameters are to blame; and the exit code."""
    text: str
    table: pd.DataFrame
    figures: dict[str, Any]


def log(report: Result, to: Any, *, step: int | None = None) -> None:
    """Log a report: its figures, its text, its verdicts as a table, and how many layers are violated.

    A tracker that fails is told once in the log of "coordcheck", and what remained is not sent; it raises nothing.

    Args:
        report: what `coordcheck.check` or `coordcheck.load` returned.
        to: a `SummaryWriter`, a W&B or trackio run or module, the module mlflow, or `(MlflowClient, run_id)`.
        step: the tracker's step.

    Raises:
        CoordCheckError: anything else; the message lists what is accepted.

    Example:
        >>> from coordcheck.reporting.report import Report
        >>> class Writer:
        ...     def add_scalar(self, tag, scalar_value, global_step=None): print(tag, scalar_value)
        ...     def add_text(self, tag, text_string, global_step=None): print(tag)
        ...     def add_figure(self, tag, figure, global_step=None, close=True): print(tag)
        >>> log(Report([]), to=Writer())
        coordcheck/exit_code 0.0
        coordcheck/report
    """
    send = _sender(to)
    try:
        send(_content(report), step)
    except Exception as error:  # a tracker that is down must not end the program that it tracks
        logging.getLogger("coordcheck").warning(
            "the report was not logged, or not wholly, to %s: %s",
            type(to).__name__,
            printable(redacted(f"{type(error).__name__}: {error}")),
        )


def _sender(to: Any) -> Callable[[Content, int | None], None]:
    """The function that sends to this kind of tracker."""
    if hasattr(to, "experiment") and not ismodule(to):  # a Lightning logger
        to = (to.experiment, to.run_id) if hasattr(to, "run_id") else to.experiment
    if _has(to, "add_scalar", "add_text", "add_figure"):
        return lambda content, step: _to_tensorboard(to, content, step)
    if ismodule(to) and _has(to, "log_metrics", "log_text", "log_table", "log_figure"):
        return lambda content, step: _to_mlflow(to, content, step)
    if isinstance(to, tuple) and len(to) == 2 and _has(to[0], "log_metric", "log_text", "log_table", "log_figure"):
        return lambda content, step: _to_mlflow_client(*to, content, step)
    package = to if ismodule(to) else _package(to)
    if _has(to, "log") and _has(package, "Image", "Table"):
        return lambda content, step: _to_run(to, package, content, step)
    raise CoordCheckError(f"a report cannot be logged to {to!r}. Accepted are {ACCEPTED}.")


def _has(to: Any, *names: str) -> bool:
    return all(callable(getattr(to, name, None)) for name in names)


def _package(to: Any) -> Any:
    """The package that a run's class comes from, which has the types of what it logs."""
    name = type(to).__module__.partition(".")[0]
    with suppress(Exception):  # a class of no module, or a package that is broken: then it is none that is accepted
        return sys.modules.get(name) or import_module(name)
    return None


def _content(report: Result) -> Content:
    layers, parameters = report.layers, report.parameters
    scalars = {"exit_code": float(report.exit_code)}
    for label in report.labels:
        of_label = layers[layers["label"] == label]
        scalars[f"{slug(label)}/violated_layers"] = float(sum(Verdict(v).violated for v in of_label["verdict"]))
        blamed, _, others = counts(parameters[parameters["label"] == label])
        scalars[f"{slug(label)}/culprits"] = float(blamed + others)
    figures = {}
    for kind in KINDS:
        with suppress(CoordCheckError):  # not every report has what every figure shows
            figures[kind] = draw(report, kind)
    return Content(scalars, plain(report), _plain(report.verdicts), figures)


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """The table of numbers, texts and None, which every tracker knows."""
    plain = table.astype(object)
    return plain.where(plain.notna(), None).map(lambda value: getattr(value, "value", value))


def _to_tensorboard(writer: Any, content: Content, step: int | None) -> None:
    for name, value in content.scalars.items():
        writer.add_scalar(f"coordcheck/{name}", value, global_step=step)
    indented = "\n".join(f"    {line}" for line in content.text.splitlines())  # Markdown: as it is
    writer.add_text("coordcheck/report", indented, global_step=step)
    for kind, figure in content.figures.items():
        writer.add_figure(f"coordcheck/{kind}", figure, global_step=step)


def _to_mlflow(module: Any, content: Content, step: int | None) -> None:
    module.log_metrics({f"coordcheck/{name}": value for name, value in content.scalars.items()}, step=step)
    module.log_text(content.text, _artifact("report.txt", step))
    module.log_table(content.table, _artifact("verdicts.json", step))
    for kind, figure in content.figures.items():
        module.log_figure(figure, _artifact(f"{kind}.png", step))


def _to_mlflow_client(client: Any, run_id: str, content: Content, step: int | None) -> None:
    for name, value in content.scalars.items():
        client.log_metric(run_id, f"coordcheck/{name}", value, step=step)
    client.log_text(run_id, content.text, _artifact("report.txt", step))
    client.log_table(run_id, content.table, _artifact("verdicts.json", step))
    for kind, figure in content.figures.items():
        client.log_figure(run_id, figure, _artifact(f"{kind}.png", step))


def _artifact(name: str, step: int | None) -> str:
    return f"coordcheck/{name}" if step is None else f"coordcheck/{step}/{name}"


def _to_run(run: Any, package: Any, content: Content, step: int | None) -> None:
    """Send to W&B or trackio, whose runs take one mapping of values."""
    values: dict[str, Any] = dict(content.scalars)
    values["verdicts"] = package.Table(dataframe=content.table, allow_mixed_types=True)
    if hasattr(package, "Html"):
        values["report"] = package.Html(f"<pre>{escape(content.text)}</pre>")
    elif hasattr(package, "Markdown"):
        values["report"] = package.Markdown(f"```\n{content.text}\n```")
    with TemporaryDirectory() as folder:  # both take the path of an image, and copy it while they log
        for kind, figure in content.figures.items():
            path = Path(folder) / f"{kind}.png"
            save_figure(figure, path)
            values[kind] = package.Image(str(path))
        run.log({f"coordcheck/{name}": value for name, value in values.items()}, step=step)
