"""Records -> the tidy table: one row per measured scale. From here on no torch and no model is needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from coordcheck.runs.records import RunRecord
from coordcheck.runs.words import Kind, Status

COLUMNS = ("label", "width", "seed", "step", "layer", "order", "kind", "quantity", "value", "status")
OUTPUTS = (Kind.MODULE, Kind.PASSTHROUGH)


def measurements(records: Sequence[RunRecord]) -> pd.DataFrame:
    """The tidy table of all runs.

    Returns:
        Columns `label, width, seed, step, layer, order, kind, quantity, value, status`. `value` is in the
        tensor's own units, NaN where `status` is not "ok" or "zero"; `order` is the position of the layer in
        the data flow, the median over the runs it was seen in.
    """
    frames = [frame for frame in map(_one_run, records) if len(frame)]
    if not frames:
        return pd.DataFrame(columns=list(COLUMNS))
    table = pd.concat(frames, ignore_index=True)
    table["order"] = table.groupby(["label", "layer"], sort=False)["order"].transform("median")
    return table[list(COLUMNS)]


def _one_run(record: RunRecord) -> pd.DataFrame:
    layers = np.array([site.layer for site in record.sites], dtype=object)
    kinds = np.array([site.kind.value for site in record.sites], dtype=object)
    # a scalar that a module returns beside its output, such as the loss, is no layer
    rows = [row for row in record.rows if record.sites[row.site].shape or record.sites[row.site].kind not in OUTPUTS]
    site = np.array([row.site for row in rows], dtype=int)
    return pd.DataFrame(
        {
            "label": record.key.label,
            "width": record.key.width,
            "seed": record.key.seed,
            "step": [row.step for row in rows],
            "layer": layers[site],
            "order": site,
            "kind": kinds[site],
            "quantity": [row.quantity.value for row in rows],
            "value": np.array([row.value for row in rows], dtype=float),
            "status": [row.status.value for row in rows],
        }
    )


def judged(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of layers that computed their output themselves: a passthrough is judged under its source's name."""
    return table[table["kind"] != Kind.PASSTHROUGH.value]


def growing_outputs(records: Sequence[RunRecord]) -> dict[tuple[str, str], bool]:
    """Whether a layer's output has an axis that grows with the width, per (label, layer).

    A readout's does not, and neither do attention logits of a fixed head size: their scales may shrink at
    initialisation without harm. Where no output of a label grows at all, as along a depth axis, none is taken
    for a readout.
    """
    shapes: dict[tuple[str, str], dict[int, set[tuple[int, ...]]]] = {}
    for record in records:
        for site in record.sites:
            by_seed = shapes.setdefault((record.key.label, site.layer), {})
            by_seed.setdefault(record.key.seed, set()).add(site.shape)
    grows = {key: any(len(found) > 1 for found in by_seed.values()) for key, by_seed in shapes.items()}
    labels = {label for (label, _), growing in grows.items() if growing}
    return {(label, layer): growing or label not in labels for (label, layer), growing in grows.items()}


def partial_layers(table: pd.DataFrame) -> dict[tuple[str, str], list[int]]:
    """Layers that were seen at some widths only, with those widths, per (label, layer)."""
    partial = {}
    table = table[table["kind"].isin([kind.value for kind in OUTPUTS])]  # few runs are diagnosed
    for label, runs in table.groupby("label", sort=False):
        widths = runs["width"].nunique()
        for layer, seen in runs.groupby("layer", sort=False)["width"]:
            if seen.nunique() < widths:
                partial[str(label), str(layer)] = sorted(map(int, seen.unique()))
    return partial


def rerouted_layers(table: pd.DataFrame) -> set[tuple[str, str]]:
    """The (label, layer) whose output had another shape at a later step than at t = 0, or was not there: experts."""
    other = table[table["status"].isin([Status.SHAPE_CHANGED.value, Status.NOT_CALLED.value])]
    return {(str(label), str(layer)) for label, layer in zip(other["label"], other["layer"], strict=True)}


def not_finite(table: pd.DataFrame) -> pd.DataFrame:
    """Where runs first left the numbers: one row per label, layer, step and status, with the widths and runs."""
    sites = table[table["kind"] == Kind.MODULE.value]
    table = table if sites.empty else sites  # a diagnosis alone has parameters only
    bad = table[table["status"].isin([Status.NAN.value, Status.INF.value])]
    first = bad.sort_values(["step", "order"]).groupby(["label", "width", "seed"], sort=False).head(1)
    places = first.groupby(["label", "layer", "step", "status"], sort=False)["width"]
    return places.agg(widths=lambda found: sorted(set(found)), runs="size").reset_index()
