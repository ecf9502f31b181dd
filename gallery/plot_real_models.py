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

The diagnosis names the hidden matrices of both models, all of them, with the two powers of m that µP wants. The heads
keep their size here, and become more, as they do in practice: the scale of attention needs no change.
"""

import importlib.util
import sys

import torch

import coordcheck
import lesson

if importlib.util.find_spec("transformers") is None:
    print("skipped: transformers is not installed")
    sys.exit(0)

from transformers import GPT2Config, LlamaConfig

# %%
# Small models from their own configs, with heads of 16 and without dropout; the fields that grow follow the width.

BASE, RATE = 64, 1e-3
SIZES = {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0, "loss_type": "ForCausalLM"}
gpt2 = GPT2Config(n_embd=BASE, n_head=4, n_layer=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **SIZES)
heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
llama = LlamaConfig(hidden_size=BASE, intermediate_size=2 * BASE, num_hidden_layers=2, **heads, **SIZES)


# %%
# µP by hand. What is inside of the blocks and is a matrix, is hidden. The readout has a matrix of its own in Llama,
# and the embedding's in GPT-2, where its input is divided instead.


def in_mup(model, width):
    """Change the initial weights, and return the optimizer; m is the width over `BASE`."""
    m = width / BASE
    hidden = [p for name, p in model.named_parameters() if p.dim() == 2 and (".h." in name or ".layers." in name)]
    shared = model.lm_head.weight is model.get_input_embeddings().weight
    slow = hidden if shared else [*hidden, model.lm_head.weight]
    with torch.no_grad():
        for matrix in hidden:
            matrix.mul_(m**-0.5)
        model.lm_head.weight.mul_(1.0 if shared else 1 / m)
    if shared:
        model.lm_head.register_forward_pre_hook(lambda module, inputs: (inputs[0] / m,))
    fast = [p for p in model.parameters() if all(p is not one for one in slow)]
    return torch.optim.AdamW([{"params": fast}, {"params": slow, "lr": RATE / m}], lr=RATE, weight_decay=0.0)


# %%
# Four checks on bytes of text, which predict the next one.

factories = {}
for name, config in (("GPT-2", gpt2), ("Llama", llama)):
    factories[name] = coordcheck.huggingface(config)
    factories[f"{name} in µP"] = coordcheck.huggingface(config, optimizer=in_mup)
tokens = lesson.text_batch(4, 16)[:, :-1]
batch = {"input_ids": tokens, "labels": tokens}
report = coordcheck.check(factories, batch, widths=lesson.GRID["widths"])
lesson.save(report.figure(), "real_models")
print(report)

# %%
# The lesson: as they come, all hidden matrices and both readouts are to blame, and nothing else; in µP nothing is.

parameters = report.parameters.assign(wrong=report.parameters["culprit"].astype(bool))
inside = parameters["layer"].str.contains(r"\.(?:h|layers)\.\d+\..*(?:attn|mlp)\.\w+\.weight$")
readouts = parameters["layer"].isin(["transformer.wte.weight@linear", "lm_head.weight"])
guilty = (inside | readouts) & ~parameters["label"].str.endswith("µP")
print(parameters[guilty].groupby("label")["layer"].count())
assert (report.status["GPT-2 in µP"], report.status["Llama in µP"]) == ("ok", "ok"), "a model in µP does not pass"
assert (report.status["GPT-2"].violated, report.status["Llama"].violated) == (True, True), (
    "a model of the library passes"
)
assert parameters["wrong"].equals(guilty), "the diagnosis names others than the hidden matrices and the readouts"
