# %% [markdown]
# # Add an objective
#
# A loss of yours is one function of ten lines. Here it is written, looked at, held to its start, put into a table of a paper beside that table's
# own losses, and onto a frontier of reward against distance; all without touching the package.

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
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import prefjax as px
from prefjax.losses.reducers import gap, log_ratio, of_pairs, pairs
from prefjax.options import Positive

plt.rcParams.update(px.analysis.style.NOTEBOOK)

# %% [markdown]
# ## Ten lines
#
# Above the function stands what it reads and its loss when policy == reference, which the trainer holds the first batch to. Keyword-only
# parameters are its options; their annotation is their range. What it gets is `px.Responses`: log-probs in nats, [prompts, responses], chosen first.


# %%
@px.for_pairs({"reference_logp"}, start=1.0)
def squared_hinge(r: px.Responses, *, beta: Positive = 0.5):
    """max(0, 1 - beta h)^2, h the difference of the pair's log-ratios, nats."""
    r = pairs(r, "reference_logp")
    return of_pairs(r, jnp.maximum(0, 1 - beta * gap(log_ratio(r))) ** 2)


mine = px.objective("squared_hinge")
print(mine.name, dict(mine.options), "reads", sorted(mine.requires.inputs))

# %% [markdown]
# An option out of its range, an input that is not there: refused by name.

# %%
for attempt in (
    lambda: px.objective("squared_hinge", beta=-1.0),
    lambda: mine.loss(px.Responses(logp=jnp.zeros((1, 2)))),
):
    try:
        attempt()
    except ValueError as error:
        print(error)

# %% [markdown]
# ## What it does to a pair
#
# Beside DPO and the plain hinge, over the margin h. A squared hinge pushes harder the worse a pair is ranked, and lets go of it at 1 / beta nats.

# %%
h = jnp.linspace(-6, 6, 241)
lookup = {
    "squared_hinge": mine,
    "dpo": px.objective("dpo", beta=1.0),
    "rso_hinge": px.objective("rso_hinge", gamma=0.5),
}
colors = dict(zip(lookup, px.analysis.style.COLORS, strict=False))


def of_margin(objective):
    zeros = jnp.zeros_like(h)
    reference = jnp.stack([zeros, zeros], axis=-1)
    return lambda h: objective.loss(px.Responses(logp=jnp.stack([h, zeros], axis=-1), reference_logp=reference))


figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.4))
for name, objective in lookup.items():
    losses = of_margin(objective)
    left.plot(h, losses(h), color=colors[name], label=name)
    right.plot(h, -jax.grad(lambda h, losses=losses: losses(h).sum())(h), color=colors[name])
left.set(title="Loss", xlabel="margin h (nats)", ylim=(-0.2, 9))
right.set(title="Push (−gradient)", xlabel="margin h (nats)")
figure.legend(loc="outside upper left", ncols=3)
plt.show()

# %% [markdown]
# ## In a train step
#
# It goes where `px.objective("dpo")` goes: packing, the reference and the metrics are there already. The first loss is the `start` above.

# %%
tok = px.ByteTokenizer()
train, _ = px.encode(px.synthetic.World(0).pairs(64), tok, mine)
model = px.ModelConfig(
    vocab_size=tok.vocab_size, num_layers=1, width=32, num_heads=2, num_kv_heads=1, head_width=16, mlp_width=64
)
setup = px.Setup(model, mine)
state, step = px.init_state(setup, px.init(model, seed=0), optax.adam(1e-3)), px.make_train_step(setup)
rows = next(px.pack(train, mine, tokens_per_step=2048))
for _ in range(4):
    state, metrics = step(state, rows)
    print(f"loss {metrics['loss']:.4f}, margin {metrics['margin']:.3f} nats")

# %% [markdown]
# ## In a table
#
# `dpo.equivalence` asks which losses, given Bradley-Terry probabilities as labels, end on the optimum of the KL-regularised reward. It takes further
# rows; on the command line by `python -m experiments.run dpo.equivalence --rows=+my_losses:squared_hinge`. Here at its size of seconds.

# %%
from experiments.tables import enumerable, load_table, running, verdicts
from experiments.tables.harness import get_config

TABLE = "dpo.equivalence"
table, folder = load_table(TABLE), Path(tempfile.mkdtemp())
config = get_config(TABLE, table, "smoke")
outcome = running.run_table(
    running.Request(TABLE, "smoke", config, folder / "table", folder / "cells", own=["squared_hinge"]), table
)
print(verdicts.markdown_table(outcome.result))

# %% [markdown]
# No claim of the paper is about your row, so its verdict is a dash. For a pair that wins with probability p a squared hinge is content at
# beta h = 2 p − 1, where DPO asks for the log-odds of p: so DPO ends on the optimum, and the hinge at a distance from it.
#
# ## On a frontier
#
# The rows behind the table hold reward and KL from the reference of every policy. Upper left is better: more reward for less distance. On soft
# labels the table's other losses end where DPO does, so only its points are drawn.

# %%
import json

lines = [json.loads(line) for line in (folder / "table" / "rows.jsonl").read_text().splitlines()]


def over_seeds(row, metric):
    return px.analysis.mean(
        np.array([one["value"] for one in lines if (one["row"], one["metric"], one["col"]) == (row, metric, "ours")])
    )


worlds = [
    enumerable.make_world(seed, prompts=config.prompts, responses=config.responses, width=config.width)
    for seed in range(config.num_seeds)
]
start = px.analysis.mean(np.array([enumerable.mean_reward(world, world.reference_logp) for world in worlds]))
outcomes = [
    px.analysis.Outcome(
        row.removeprefix("+"),
        "yours" if row.startswith("+") else "of the table",
        gold_start=start,
        gold_trained=over_seeds(row, "reward"),
        kl=over_seeds(row, "KL(pi || ref)"),
    )
    for row in dict.fromkeys(line["row"] for line in lines if line["row"].startswith(("dpo", "+")))
]
px.analysis.comparison.frontier_figure(outcomes)

# %% [markdown]
# To keep it for everybody, with its formula in the docs and its tests: `CONTRIBUTING.md`, "An objective".
