"""Bug zoo: the factor of the shape in Muon
==========================================

An orthogonalised update has a size that depends on the shape of its matrix, so that every implementation multiplies it
by a factor of the shape. In µP an update of spectral norm √(fan_out / fan_in) is right for every matrix at one learning
rate (Bernstein & Newhouse 2024, `arXiv:2409.20325 <https://arxiv.org/abs/2409.20325>`_). Six factors that were
wrong, from five reports, rebuilt in small MLPs and convolutional nets: the diagnosis names the matrices, and by which
power of m = width / 64 their updates must change.

What to see: a line is the change of a layer in four updates, with markers where its matrix has the wrong factor. What
is too fast rises, what is too slow falls, and layers behind it follow; 0.0 is the first convolution. The plain
coordinate check sees none of it: after four updates of a usual size, scales are still those of the initialisation.

Two factors are right: √max(1, fan_out / fan_in) keeps one rate for all widths, and √max(fan_out, fan_in), Adam's size,
needs 1/√n for hidden matrices, not Adam's 1/n: its spectral norm is √n, where that of Adam's, nearly of rank one, is n.
"""

import math

import bugs
import lesson
from broken import adams, muon, original
from bugs import Bug

# %%
# Muon has all matrices but the readout. A kernel belongs to the columns of its matrix, which two of the bugs forget.

slow, slow_first = {"hidden.*": ("lr", 1.0)}, {"input.*": ("lr", 0.5)}
fast, fast_first = ({name: ("lr", -0.5)} for name in ("hidden.*", "input.*"))
stem, kernels = {"0.0.*": ("lr", 0.5)}, {"[12].0.*": ("lr", 1.0)}
twice = muon(lambda *shape: original(*shape) * adams(*shape), -0.5)
of_kernel = muon(lambda *shape: adams(*shape) / math.prod(shape[:2]) ** 0.5, -0.5, image=True)
none, last_two = muon(lambda *shape: 1.0), muon(lambda *shape: original(*shape[-2:]), image=True)
zoo = bugs.zoo(
    Bug("healthy: original factor", "", muon(original)),
    Bug("healthy: Adam's size, at 1/√n", "", muon(adams, -0.5)),
    Bug("healthy: convolutions", "", muon(original, image=True)),
    Bug("NVIDIA/Megatron-LM/pull/3715 (rates)", "Muon's matrices have Adam's 1/n, too", muon(original, -1), slow),
    Bug("NVIDIA/Megatron-LM/pull/3715 (factor)", "√max(fan_out, fan_in) at one rate for all widths", muon(adams), fast),
    Bug("google-deepmind/optax/pull/1249", "no factor of the shape", none, slow_first),
    Bug("kozistr/pytorch_optimizer/issues/371", "both factors are multiplied", twice, fast_first),
    Bug("huggingface/pytorch-image-models/pull/2791", "Adam's size, of the kernel alone", of_kernel, stem | kernels),
    Bug("ultralytics/ultralytics/pull/25846", "height over width", last_two, stem),
)

# %%
report = bugs.check(zoo, **lesson.GRID)
lesson.save(bugs.page(report, zoo, "change"), "bug_zoo_muon")
lesson.table(bugs.summary(report, zoo), "bug_zoo_muon")
assert not bugs.wrong(report, zoo), "the diagnosis does not say what the bugs are"
