# %% [markdown]
# # Quickstart
#
# From records to a report in the words of the API: records become **token trees**, trees become **rows** under one **mask**, a **train step** takes
# rows, and what comes out is **sampled** and judged. A model of half a million parameters learns to answer at the door of an inn, in a world whose
# true reward is known; nothing is downloaded. It took 149 s of processor time.

# %%
# Where there is no checkout, as in Colab: what `git clone` takes for your copy of the repository.
ADDRESS = ""

import subprocess
import sys
from pathlib import Path

here = Path.cwd()
places = [here, here.parent, here / "prefjax_checkout"]
checkout = next((place for place in places if (place / "prefjax" / "__init__.py").exists()), None)
if checkout is None:
    if not ADDRESS:
        raise ValueError(
            "set ADDRESS above to what `git clone` takes for your copy of prefjax, and run this cell again"
        )
    checkout = here / "prefjax_checkout"
    subprocess.run(["git", "clone", "--quiet", ADDRESS, checkout], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", f"{checkout}[report,hub,commands]"], check=True)
sys.path.insert(0, str(checkout))

# %%
import itertools
import tempfile

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import prefjax as px

plt.rcParams.update(px.analysis.style.NOTEBOOK)
tok = px.ByteTokenizer()
world = px.synthetic.World(0)

# %% [markdown]
# ## Data
#
# A record is a row of a file: a prompt with a chosen and a rejected response (or labels, rewards, rankings). Yours would come from
# `px.read_records("preferences.jsonl")`.

# %%
pairs = list(world.pairs(4096))
pairs[0]

# %% [markdown]
# `encode` makes token trees of them, as an objective needs them, and holds a share of the prompts out. What became of every record is counted.

# %%
dpo = px.objective("dpo", beta=2.0)
train, held_out = px.encode(pairs, tok, dpo, holdout=0.05)
print(train.account)
print(px.rows.summarize_lengths([train[i] for i in range(len(train))]))

# %% [markdown]
# ## The tree
#
# One prompt, its responses below it; the prompt's tokens are there once.

# %%
tree = train[0]
print(repr(tok.decode(tree.prompt.tolist())))
for response, target in zip(tree.responses, tree.targets, strict=True):
    print(f"  target {target:g}: {len(response)} tokens, {tok.decode(response.tolist())!r}")

# %% [markdown]
# ## The mask
#
# Trees lie in rows depth first. Every key has one integer, `visible_until`: query i looks at key j iff `j <= i < visible_until[j]`. Responses do
# not see each other, prompts do not see each other, and that is all there is to prefix sharing and packing.

# %%
rows = next(px.pack(train, dpo, tokens_per_step=256, seed=0))
mask = np.asarray(px.models.visible(jnp.asarray(rows.visible_until[:1])))[0]
figure, axes = plt.subplots(figsize=(4.6, 4.6))
axes.imshow(mask, cmap="Blues", vmax=1.6)
axes.set(title=f"One row of {len(mask)} tokens", xlabel="key j", ylabel="query i")
plt.show()

# %% [markdown]
# ## Train
#
# First the model learns to speak, by SFT on demonstrations, then to please, by DPO on pairs. The loop is yours; any optax transformation is
# an optimiser, `metrics` are numbers, and the reference is the policy that training starts from.

# %%
model = px.ModelConfig(
    vocab_size=tok.vocab_size, num_layers=3, width=96, num_heads=4, num_kv_heads=2, head_width=24, mlp_width=256
)


def fit(objective, trees, policy, optimizer, steps, tokens_per_step=4096):
    setup = px.Setup(model, objective)
    state, step = px.init_state(setup, policy, optimizer), px.make_train_step(setup)
    log = []
    for rows in itertools.islice(px.pack(trees, objective, tokens_per_step=tokens_per_step, seed=0), steps):
        state, metrics = step(state, rows)
        log.append(dict(metrics))
    return setup, state, log


sft = px.objective("sft")
demonstrations, _ = px.encode(world.demonstrations(8192), tok, sft)
SFT_STEPS, DPO_STEPS = 260, 80
schedule = optax.warmup_cosine_decay_schedule(0, 4e-3, SFT_STEPS // 16, SFT_STEPS, 2e-4)
_, spoken, sft_log = fit(sft, demonstrations, px.init(model, seed=0), optax.adamw(schedule, b2=0.95), SFT_STEPS)
policy = spoken.params["policy"]

# %%
setup, state, dpo_log = fit(dpo, train, policy, optax.adamw(6e-4), DPO_STEPS)
before = px.init_state(setup, policy, optax.sgd(0.0))

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
for axis, log, name, title in (
    (axes[0], sft_log, "loss", "SFT: loss"),
    (axes[1], dpo_log, "loss", "DPO: loss"),
    (axes[2], dpo_log, "reward_accuracy", "DPO: reward accuracy"),
):
    axis.plot([line[name] for line in log], color=px.analysis.style.BLUE)
    axis.set(title=title, xlabel="step")
plt.show()

# %% [markdown]
# ## Held out, and samples

# %%
measured = px.evaluate(setup, state, held_out)
print({name: round(measured[name], 3) for name in ("loss", "reward_accuracy", "margin", "kl_estimate")})

# %%
others, _ = px.encode(world.pairs(1024, split="eval"), tok, dpo)
prompts = others.prompts[:100]
asked = [tok.decode(prompt[1:].tolist()) for prompt in prompts]
said = {name: px.sample(setup, one, prompts, tok, max_new_tokens=48) for name, one in (("SFT", before), ("DPO", state))}
for prompt, first, second in list(zip(asked, said["SFT"], said["DPO"], strict=True))[:5]:
    print(f"{prompt.strip():32} SFT: {first:34} DPO: {second}")

# %% [markdown]
# ## A report
#
# The same page that the command `python -m experiments.train` writes: numbers with their errors, a plot, and what is odd about the run. A garbled
# answer counts −4 in this world, and the best is worth 3.05; the command's own run is longer.

# %%
rewards = {
    name: np.array([world.gold_reward(p, t) for p, t in zip(asked, texts, strict=True)]) for name, texts in said.items()
}
ends = [tok.eos_id]
logps = px.policies.rollouts.sequence_logps(
    setup,
    [state.params["policy"], policy],
    prompts,
    [np.array([*tok.encode(text), *ends], np.int32) for text in said["DPO"]],
)
samples = px.analysis.Samples(
    prompts=asked,
    reference=said["SFT"],
    policy=said["DPO"],
    policy_logp=logps[0],
    policy_reference_logp=logps[1],
    gold=px.analysis.Gold(rewards["SFT"], rewards["DPO"], floor=-4.0),
)
lines = [{"step": n + 1, "split": "train", **line} for n, line in enumerate(dpo_log)]
lines.append({"step": len(dpo_log), "split": "eval", **measured})
results = px.analysis.RunResults(
    objective="dpo",
    start="SFT",
    data="the synthetic inn",
    command="this notebook",
    config={"loss.beta": 2.0},
    machine={},
    seconds={},
    metrics=lines,
    heldout_pairs=len(held_out),
    samples=samples,
)
page = px.analysis.write_report(tempfile.mkdtemp(), results).read_text()
print(page[: page.index("![")])

# %%
px.analysis.plots.run_figure(results, px.analysis.summarize(results))

# %% [markdown]
# Next: the same as one command with every option (`docs/getting_started.md`), `prefix_sharing.ipynb` for what rows save, and
# `bring_your_model_and_data.ipynb`.
