"""Bug zoo: the factor of the shape in Muon
==========================================

An orthogonalised update has a size that depends on the shape of its matrix, so that every implementation multiplies it
by a factor of the shape. In µP an update of spectral norm √(fan_out / fan_in) is right for every matrix at one learning
rate (Bernstein & Newhouse 2024, `arXiv:2409.20325 <https://arxiv.org/abs/2409.20325>`_). Six factors that were
wrong, from five reports, rebuilt in small MLPs and convolutional nets: the diagnosis names the matrices, and by which
power of m = width / 64 their updates must change.

What to see: a line is the change of a layer in four updates, with markers where its matrix has the wrong factor. What
is too fast rises, what is too slow falls, and layers behind it follow; 0.0 is the first convolution. Of all this the
plain coordinate check sees nothing: after four updates of a usual size, the scales themselves are still those of the
initialisation.

Two factors are right, with rates of their own: √max(1, fan_out / fan_in) keeps one rate for all widths, and
√max(fan_out, fan_in), which gives updates Adam's size, needs 1/√n for hidden matrices. Not Adam's 1/n: an orthogonal
update of that size has a spectral norm of √n, where Adam's, nearly of rank one, has n. Both are among the healthy
models here.
"""

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import bugs
import coordcheck
import lesson
from bugs import Bug
from coordcheck.models import mlp

# %%
# Factors of the shape (rows, columns) of a matrix, or (rows, columns, height, width) of a convolution, whose kernel
# belongs to the columns. Two that are right, and what was made of them.


def original(rows, *columns):
    """√max(1, fan_out / fan_in)."""
    return max(1.0, rows / math.prod(columns)) ** 0.5


def adams(rows, *columns):
    """√max(fan_out, fan_in), which makes the entries of all updates as large as Adam's."""
    return 0.2 * max(rows, math.prod(columns)) ** 0.5


FACTORS = {
    "original": original,
    "adams": adams,
    "none": lambda *shape: 1.0,
    "both": lambda *shape: original(*shape) * adams(*shape),
    "original of kernel": lambda *shape: original(*shape[-2:]),  # the last two axes
    "adams of kernel": lambda *shape: adams(*shape) / math.prod(shape[:2]) ** 0.5,  # as if it had no other entries
}

# %%
# An MLP, and a convolutional net of width / 2 channels. Muon has all matrices but the readout, which is Adam's at 1/n.


def muon(factor, rate=0.0, image=False):
    """A factory; `rate` is the power of m in Muon's learning rate for hidden matrices."""

    def build(width):
        """The model with its optimizers and its data."""
        m, model = width / bugs.BASE, images(width // 2) if image else mlp("µP", biases=False)(width)[0]
        first, *others, readout = model.parameters()
        nn.init.normal_(readout, std=1 / width)
        groups = [{"params": [first]}, {"params": others, "lr": bugs.MUON_RATE * m**rate}]
        orthogonal = bugs.Orthogonal(groups, bugs.MUON_RATE, lambda parameter: FACTORS[factor](*parameter.shape))
        x = torch.randn(16, *((3, 6, 6) if image else (64,)), generator=torch.Generator().manual_seed(0))
        optimizers = [orthogonal, torch.optim.Adam([readout], bugs.RATE / m)]
        return coordcheck.Trial(model, optimizers, batch=(x, torch.arange(16) % 10), loss=cross_entropy)

    return build


def images(n):
    """(batch, 3, 6, 6) -> (batch, 10): three convolutions, with norms that have no parameters."""
    made = [nn.Conv2d(size, n, 3, padding=1, bias=False) for size in (3, n, n)]
    layers = [nn.Sequential(layer, nn.GroupNorm(4, n, affine=False), nn.ReLU()) for layer in made]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, 10, bias=False))


# %%
# What the diagnosis must say: which matrices, and the power of m that their learning rates lack.

slow_first, fast_first = {"input.*": ("lr", 0.5)}, {"input.*": ("lr", -0.5)}
slow, fast = {"hidden.*": ("lr", 1.0)}, {"hidden.*": ("lr", -0.5)}
slow_stem, kernels = {"0.0.*": ("lr", 0.5)}, {"[12].0.*": ("lr", 1.0)}
megatron, timm = "NVIDIA/Megatron-LM/pull/3715", "huggingface/pytorch-image-models/pull/2791"
zoo = [
    Bug("healthy: original factor", "", muon("original")),
    Bug("healthy: Adam's size, at 1/√n", "", muon("adams", -0.5)),
    Bug("healthy: convolutions", "", muon("original", image=True)),
    Bug(f"{megatron} (rates)", "Muon's matrices have Adam's 1/n, too", muon("original", -1), slow),
    Bug(f"{megatron} (factor)", "√max(fan_out, fan_in) at one rate for all widths", muon("adams"), fast),
    Bug("google-deepmind/optax/pull/1249", "no factor of the shape", muon("none"), slow_first),
    Bug("kozistr/pytorch_optimizer/issues/371", "both factors are multiplied", muon("both", -0.5), fast_first),
    Bug(timm, "Adam's size, of the kernel alone", muon("adams of kernel", -0.5, image=True), slow_stem | kernels),
    Bug("ultralytics/ultralytics/pull/25846", "height over width", muon("original of kernel", image=True), slow_stem),
]

# %%
report = bugs.check(zoo, **lesson.GRID)
lesson.save(bugs.page(report, zoo, "change"), "bug_zoo_muon")
lesson.table(bugs.summary(report, zoo), "bug_zoo_muon")
assert not bugs.wrong(report, zoo), "the diagnosis does not say what the bugs are"
