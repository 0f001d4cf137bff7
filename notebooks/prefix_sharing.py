# %% [markdown]
# # Prefix sharing
#
# A prompt with K responses goes through the model as one row: the prompt once, each response behind it, none seeing another. This notebook lays out
# such rows, draws their mask, counts what the attention skips, shows that log-probs, loss and gradient are those of plain sequences, and what it saves
# on lengths of real data. arXiv 2410.20305 has the idea; here it is one integer for each token.

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
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import prefjax as px

plt.rcParams.update(px.analysis.style.NOTEBOOK)
BLUE, RED, GRAY = px.analysis.style.BLUE, px.analysis.style.RED, px.analysis.style.GRAY

# %% [markdown]
# ## A forest in one row
#
# Nodes depth first: two prompts, one with two responses, one with three. `positions` restart behind the prompt for each response, and
# `visible_until` is the end of a node's last descendant.

# %%
names = ("prompt 1", "chosen", "rejected", "prompt 2", "a", "b", "c")
lengths, parents = np.array([5, 4, 3, 4, 3, 2, 4]), np.array([-1, 0, 0, -1, 3, 3, 3])
forest = px.rows.lay_out_forest(lengths, parents)
for name, start, end in zip(names, forest.starts, forest.ends, strict=True):
    here = slice(start, end)
    print(f"{name:9} positions {forest.positions[here].tolist()}  visible_until {forest.visible_until[here].tolist()}")

# %% [markdown]
# Query i looks at key j iff `j <= i < visible_until[j]`. The first half says causal, the second that a key is forgotten when its subtree ends.


# %%
def mask_of(visible_until):
    return np.asarray(px.models.visible(jnp.asarray(visible_until)[None]))[0]


is_prompt = np.repeat(parents < 0, lengths)
mask = mask_of(forest.visible_until)
picture = np.ones((*mask.shape, 3)) * 0.95
picture[mask & is_prompt[None]] = plt.matplotlib.colors.to_rgb(BLUE)
picture[mask & ~is_prompt[None]] = plt.matplotlib.colors.to_rgb(RED)
figure, axes = plt.subplots(figsize=(5.4, 5))
axes.imshow(picture)
middles = (forest.starts + forest.ends - 1) / 2
axes.set_yticks(middles, names)
axes.set_xticks(middles, names, rotation=45, ha="right")
axes.set(title="Who sees whom", xlabel="key", ylabel="query")
plt.show()

# %% [markdown]
# The same integer makes deeper trees: a conversation that branches twice is a row like any other.

# %%
deep = px.rows.lay_out_forest(np.array([4, 3, 2, 2, 3, 2]), np.array([-1, 0, 1, 1, 0, 4]))
print("positions    ", deep.positions.tolist())
print("visible_until", deep.visible_until.tolist())

# %% [markdown]
# ## Tiles
#
# Attention goes over tiles of 64 queries by 64 keys. A tile holds a visible pair iff the largest `visible_until` of its keys is beyond its first query,
# and its first key is not beyond its last query: exact, and cheap. The others are never computed.

# %%
rng = np.random.default_rng(0)
sizes, above = [], []
for _ in range(4):  # four prompts with three responses each
    sizes += [int(rng.integers(120, 260)), *rng.integers(20, 80, 3).tolist()]
    above += [-1, *[len(above)] * 3]
row = px.rows.lay_out_forest(np.array(sizes), np.array(above))
from prefjax.models.attention.tiles import BLOCK, live_tiles

tiles = live_tiles(jnp.asarray(row.visible_until)[None])
blocks = -(-len(row.positions) // BLOCK)
live = np.zeros(blocks * blocks)
live[np.asarray(tiles.index)[: int(tiles.count[0])]] = 1
causal = blocks * (blocks + 1) // 2
figure, axes = plt.subplots(figsize=(5, 5))
axes.imshow(np.kron(live.reshape(blocks, blocks), np.ones((BLOCK, BLOCK))), cmap="Blues", vmax=3)
axes.imshow(
    np.ma.masked_equal(np.pad(mask_of(row.visible_until), (0, -len(row.positions) % BLOCK)), 0), cmap="Blues_r", vmax=2
)
axes.set(
    title=f"{int(live.sum())} of {causal} causal tiles are live ({live.sum() / blocks**2:.0%} of all)",
    xlabel="key",
    ylabel="query",
)
plt.show()

# %% [markdown]
# ## Nothing changes
#
# The same pairs as two sequences each (`pairs`), and shared and packed (`shared_packed`), through the same model: loss, mean margin and every
# number of the gradient.

# %%
jax.config.update("jax_enable_x64", True)
tok = px.ByteTokenizer()
dpo = px.objective("dpo", beta=0.1)
model = px.ModelConfig(
    **dict(vocab_size=tok.vocab_size, num_layers=1, width=32, num_heads=2, num_kv_heads=1, head_width=16, mlp_width=64),
    **dict(dtype="float64", param_dtype="float64", attention="tiled"),
)
trees, _ = px.encode(px.synthetic.World(0).pairs(12), tok, dpo)
setup = px.Setup(model, dpo)
policy, reference = (px.init(model, seed=seed) for seed in (0, 1))
params = px.training.init_params(setup, policy)
step = jax.jit(functools.partial(px.training.step.loss_and_gradients, setup))
outcome = {}
for layout in ("pairs", "shared_packed"):
    rows = next(px.pack(trees, dpo, tokens_per_step=4096, seed=None, epochs=1, layout=layout))
    gradient, metrics = jax.device_get(step(params, reference, rows))
    flat = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])
    outcome[layout] = flat, dict(px.training.metrics.Metrics(metrics))
(plain, one), (shared, other) = outcome["pairs"], outcome["shared_packed"]
print(f"pairs in the step  {one['pairs']:.0f} and {other['pairs']:.0f}")
print(f"tokens             {one['tokens']:.0f} and {other['tokens']:.0f}")
print(f"loss               {one['loss']:.15f} and {other['loss']:.15f}")
print(
    f"gradient           {len(plain):,} numbers, the largest difference {abs(plain - shared).max() / abs(plain).max():.1e} of the largest"
)
assert abs(plain - shared).max() < 1e-12 * abs(plain).max() and one["pairs"] == other["pairs"] == 12

# %% [markdown]
# ## What it saves
#
# With prompts r times as long as a response, K responses share `K (r + 1) / (r + K)` of the tokens. On real data that is a ratio of sums, which
# a median does not tell. The medians below are the paper's own, of six data sets (its first table); the dots are counted in rows that are laid out at
# those lengths, the crosses its packed speed-up on GPUs: near for four, far below where responses are a few tokens under a long prompt.

# %%
from experiments.tables.harness import load_paper

paper = load_paper(checkout / "experiments" / "benchmarks" / "paper.toml")["datasets"]
r = np.linspace(0, 12, 121)
figure, axes = plt.subplots(figsize=(7.4, 4.2))
for K, color in ((2, BLUE), (4, px.analysis.style.GREEN)):
    axes.plot(r, K * (r + 1) / (r + K), color=color, label=f"K = {K}")
sets = {name: lengths for name, lengths in paper["lengths"].items() if isinstance(lengths, dict)}  # beside their source
for name, lengths in sets.items():
    ratio = lengths["median_ratio"]
    response = max(1, round(lengths["median_length"] / (ratio + 2)))
    tree = px.rows.TokenTree(
        np.ones(max(1, round(ratio * response)), np.int32),
        (np.ones(response, np.int32),) * 2,
        np.array([1, 0], np.float32),
    )
    saved = px.rows.summarize_lengths([tree]).token_saving
    packed = paper["packed"][name]
    axes.plot(ratio, saved, "o", color=BLUE, ms=6, mec="white")
    axes.plot(ratio, packed["flex_shared"] / packed["flex"], "X", color=RED, ms=6, mec="white")
    axes.annotate(name, (ratio, saved), xytext=(0, 7), textcoords="offset points", fontsize=8, rotation=50)
    print(
        f"{name:14} prompt : response {ratio:5.2f}   tokens saved {saved:.2f}x   packed speed-up {packed['flex_shared'] / packed['flex']:.2f}x"
    )
axes.plot([], [], "o", color=BLUE, ms=6, label="tokens, counted")
axes.plot([], [], "X", color=RED, ms=6, label="the paper's speed-up")
axes.set(
    title="Separate tokens over shared tokens",
    xlabel="prompt tokens over response tokens, r",
    ylabel="times fewer",
    ylim=(0.95, 3.4),
)
axes.legend(ncols=2)
plt.show()

# %% [markdown]
# On a file of yours: `python -m experiments.prepare` prints this ratio, and `docs/performance.md` says what is left of it in time.
