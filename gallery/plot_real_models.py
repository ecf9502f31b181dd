"""GPT-2 and Llama, as their library makes them and in µP
=======================================================

The models of ``transformers`` start every matrix of every width from one standard deviation, 0.02, and are trained at
one learning rate. In µP the hidden matrices start smaller by √m and learn more slowly by m, and the logits are divided
by m, where m is the width over the one that was tuned (Yang et al. 2022,
`arXiv:2203.03466 <https://arxiv.org/abs/2203.03466>`_, table 8). By hand that is a function of a dozen lines, and the
check tells the two apart, from random weights and a config alone.

What to see: a line is a layer, a column an update. As the library makes them, both models grow with the width: before
training by their initialisation, at t = 0, and then in how far every update moves them. In µP they keep their scale,
and what falls at t = 0 is by design: the readout starts with a scale of 1/√n, and grows into place.

The diagnosis names all hidden matrices of both, with the two powers of m that µP wants, and the readouts.
"""

import torch
from transformers import GPT2Config, LlamaConfig

import coordcheck
import lesson

# %%
# Small models from their own configs; the fields that grow follow the width, the heads keep their size.

BASE, RATE, BLOCKS = 64, 1e-3, 1 if lesson.QUICK else 2
SIZES = {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0, "loss_type": "ForCausalLM"}
gpt2 = GPT2Config(n_embd=BASE, n_head=4, n_layer=BLOCKS, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **SIZES)
heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
llama = LlamaConfig(hidden_size=BASE, intermediate_size=2 * BASE, num_hidden_layers=BLOCKS, **heads, **SIZES)


def in_mup(model, width):
    """µP by hand: change the initial weights, and return the optimizer."""
    m, readout = width / BASE, model.lm_head.weight
    hidden = [p for name, p in model.named_parameters() if p.dim() == 2 and (".h." in name or ".layers." in name)]
    shared = readout is model.get_input_embeddings().weight  # as in GPT-2, where what comes into it is divided
    if shared:
        model.lm_head.register_forward_pre_hook(lambda module, inputs: (inputs[0] / m,))
    slow = hidden if shared else [*hidden, readout]
    with torch.no_grad():
        for matrix in slow:
            matrix.mul_(1 / m if matrix is readout else m**-0.5)
    fast = [p for p in model.parameters() if all(p is not one for one in slow)]
    return torch.optim.AdamW([{"params": fast}, {"params": slow, "lr": RATE / m}], lr=RATE, weight_decay=0.0)


# %%
# The lesson: as they come, all hidden matrices and both readouts are to blame, and nothing else; in µP nothing is.

tokens, library = lesson.text_batch(4, 16)[:, :-1], {"GPT-2": gpt2} | ({} if lesson.QUICK else {"Llama": llama})
factories = {name: coordcheck.huggingface(config) for name, config in library.items()}
factories |= {f"{name} in µP": coordcheck.huggingface(config, optimizer=in_mup) for name, config in library.items()}
grid = {"widths": lesson.GRID["widths"], "seeds": 2 if lesson.QUICK else 3}
report = coordcheck.check(factories, {"input_ids": tokens, "labels": tokens}, **grid)
lesson.save(report.figure(), "real_models")
parameters = report.parameters
inside = parameters["layer"].str.contains(r"\.(?:h|layers)\.\d+\..*(?:attn|mlp)\.\w+\.weight$")
readouts = parameters["layer"].isin(["transformer.wte.weight@linear", "lm_head.weight"])
guilty = (inside | readouts) & ~parameters["label"].str.endswith("µP")
passed = {name: status == "ok" for name, status in report.status.items()}
assert passed == {name: "µP" in name for name in factories}, "a model in µP does not pass, or one of the library does"
assert parameters["culprit"].astype(bool).equals(guilty), "the diagnosis names others, or not all"
