"""A bench of planted faults for `coordcheck.diagnose`: does it name the parameter, the cause, the power of the width?

`families` holds small models that are correct in µP, `faults` breaks one thing in each and keeps the truth beside it,
`scoring` compares an answer with its truth, and `python -m faultbench` (from `tests/`) prints the score next to the
classical coordinate check's on the same cases.

Every truth is decided from theory, before any answer was seen: Yang et al. 2022 (arXiv:2203.03466), table 3, and the
theta-shift of abc-parametrizations of Yang & Hu 2021 (arXiv:2011.14522). `faults.split` divides the cases in two
halves: one to develop on and one that is only scored.

`foreign` holds models of kinds that others write, with faults of their own: `python -m faultbench --kinds` scores them.
"""
