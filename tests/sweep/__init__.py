"""A sweep over odd but healthy architectures of the literature, set in µP by hand, and each with one fault planted.

`mup` sets a model's initialisation and learning rates from how its fans grow, `planting` draws a fault by rule,
`judging` compares what `coordcheck.check` says with the truth, and the modules that `catalogue` lists hold the models.
`python -m sweep` (from `tests/`) prints the table.

What is expected comes from theory, before any answer was seen: nothing is violated in a healthy model, and of a
planted fault the culprit, the cause and the power are known (Yang et al. 2022, arXiv:2203.03466, table 3; the
theta-shift of Yang & Hu 2021, arXiv:2011.14522).
"""
