"""Models in plain SP, as people bring them, which `coordcheck.fix` is to bring to µP.

`libraries` holds those of transformers and timm, `own` those of torch alone, `entries` pairs them with optimizers of
one learning rate for everything, `judging` mends one and checks it with seeds and data that the mending never saw.
`python -m fixmatrix` (from `tests/`) prints the table.
"""
