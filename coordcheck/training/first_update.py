"""The first update on the whole batch, where a diagnosis by itself needs it: what an optimizer's eps stands beside.

The few examples of a probe have larger gradients than a batch, and the diagnosis works without eps. An eps that is far
below the probe's gradients at every width is below those of the batch as well; any other is looked at in training.
"""

from __future__ import annotations

from collections.abc import Sequence

from coordcheck.common.isolation import summary, user_code
from coordcheck.recording.updates.first_updates import FirstUpdates
from coordcheck.recording.updates.own_updates import MAX_UPDATES
from coordcheck.runs.records import ParameterInfo
from coordcheck.training.trials import Run, backward, prepared

# Of a gradient: below this, eps is none of its business. It may be the cause where it is as large as the batch's
# gradients at the widest model, which are smaller than the probe's by the root of the batch / a few examples at most,
# and larger at the narrowest model by the range of widths.
BESIDE = 1e-3


def with_first_update(run: Run, infos: Sequence[ParameterInfo]) -> tuple[list[ParameterInfo], list[str]]:
    """The parameters with their first gradient and update in training, where an eps stands beside the probe's.

    Args:
        run: builds the model, and has the batch.
        infos: the parameters, with their first gradients on the probe.

    Returns:
        The parameters, without those numbers where no eps is near a gradient, or the batch cannot be trained on; and
        a note of why it cannot.
    """
    alone = [info._replace(gradient=None, update=None) for info in infos]
    if not any(info.eps and info.gradient and info.eps > BESIDE * info.gradient for info in infos):
        return alone, []
    firsts = FirstUpdates()
    try:
        with user_code("the first update"):
            model, optimizers, loss, batches, device = prepared(run)
            for step in range(MAX_UPDATES):
                backward(loss(model, batches.at(step, device)), optimizers)
                firsts.before(model)
                for optimizer in optimizers:
                    optimizer.step()
                firsts.after()
                if not firsts.waiting:
                    break
    except Exception as error:  # of a model that runs on the probe alone, or of a step that needs a closure
        return alone, [f"eps was not looked at: the first update on the whole batch failed: {summary(error)}"]
    return firsts.told(alone), []
