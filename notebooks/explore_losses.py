# %% [markdown]
# # Explore the losses
#
# Every objective in `prefjax.losses` is one pure function from response log-probs to a loss per prompt. This notebook draws
# each of them: on the left the **loss**, on the right the **push**, the negative gradient, which is what the optimiser
# feels. The push tells more than the loss: where it is large a response is being moved, where it is zero nothing is learned,
# where it changes sign the objective pulls back.
#
# Everything is in nats, and log-probs are sums over the tokens of a response.

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
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import prefjax as px
from prefjax.losses import OBJECTIVES, Responses

plt.rcParams.update(px.analysis.style.NOTEBOOK)
BLUE, RED, GREEN = px.analysis.style.BLUE, px.analysis.style.RED, px.analysis.style.GREEN
GOLD, PURPLE = px.analysis.style.GOLD, px.analysis.style.PURPLE
BLUES = ["#9cc4ec", "#4f8fd0", "#1d4e89"]  # light to dark, for one option growing


def draw(x, curves, xlabel, colors, ylim=None, push_ylim=None, start=0.0):
    # `curves` maps a label to a function that turns the points x into one loss each.
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9))
    for (label, losses), color in zip(curves.items(), colors, strict=True):
        push = -jax.grad(lambda x, losses=losses: losses(x).sum())(x)
        left.plot(x, losses(x), color=color, label=label)
        right.plot(x, push, color=color)
    left.set(title="loss", xlabel=xlabel, ylim=ylim)
    right.set(title="push  (−gradient)", xlabel=xlabel, ylim=push_ylim)
    right.axhline(0, color=px.analysis.style.GRAY, linewidth=0.8)
    if start is not None:  # where training starts
        for axes in (left, right):
            axes.axvline(start, color=px.analysis.style.GRAY, linewidth=0.8, linestyle=":")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=len(curves))


def draw_surface(axes, x, y, values, title, xlabel, ylabel):
    # Blue pushes up, red pushes down, white is left alone; the line is where it changes sign.
    largest = float(abs(values).max())
    image = axes.pcolormesh(x, y, values, cmap="RdBu", vmin=-largest, vmax=largest, shading="gouraud", rasterized=True)
    if float(values.min()) < 0 < float(values.max()):
        axes.contour(x, y, values, levels=[0.0], colors="#333333", linewidths=1)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.figure.colorbar(image, ax=axes, shrink=0.85)


# %% [markdown]
# ## 1. Pairs: one number, the margin
#
# A pair is a chosen and a rejected response to one prompt. Most pairwise objectives see it through a single number,
#
# $$h = \big(\log\pi - \log\pi_\text{ref}\big)(\text{chosen}) - \big(\log\pi - \log\pi_\text{ref}\big)(\text{rejected}),$$
#
# the **margin**: how much more the policy prefers the chosen response than the reference does. Training starts at $h = 0$ (dotted
# line). The push on the chosen log-prob is the curve on the right, and the push on the rejected one is its mirror image.

# %%
LEVEL = -50.0  # the log-prob of both responses under the reference; any number gives the same curves


def of_margin(name, **options):
    def losses(h):
        logp = jnp.stack([LEVEL + h, jnp.full_like(h, LEVEL)], axis=-1)
        return OBJECTIVES[name].loss(Responses(logp=logp, reference_logp=jnp.full_like(logp, LEVEL)), **options)

    return losses


h = jnp.linspace(-60, 60, 601)
for name, objective in OBJECTIVES.items():
    shape = "any K" if objective.requires.group_size is None else f"K = {objective.requires.group_size}"
    print(f"{name:10} {shape:6} options {dict(objective.options)}  needs {sorted(objective.requires.inputs)}")

# %% [markdown]
# ## 2. The logistic loss: DPO
#
# $$-\log\sigma(\beta h)$$
#
# Three things to see.
#
# - **Badly ranked pairs are pushed with a constant force** $\beta$, well ranked ones hardly at all. The switch happens over a few $1/\beta$ nats.
# - **$\beta$ sets the scale of $h$ and the strength of the push together.** A small $\beta$ lets the policy drift far from the
#   reference before it is satisfied; a large one is content after a few nats.
# - **The push never reaches zero**: on clean, separable data $h$ grows for as long as you train.

# %%
curves = {f"dpo  β = {beta}": of_margin("dpo", beta=beta) for beta in (0.05, 0.1, 0.3)}
draw(h, curves, "margin h (nats)", BLUES, ylim=(-0.2, 6))

# %% [markdown]
# ## 3. Noisy labels: cDPO and rDPO
#
# Suppose a fraction $e$ of the labels is flipped. Both corrections are DPO plus a straight line in $h$, with opposite signs.
#
# - **cDPO** trains towards the soft label $1 - e$. Its push changes sign at $\beta h = \log\frac{1-e}{e}$: beyond that it *pulls the
#   pair back*. It is cautious.
# - **rDPO** estimates the loss of the *clean* label without bias. Its push **never vanishes** (it levels off at
#   $\beta\frac{e}{1-2e}$), and its loss falls below zero without bound, so a negative training loss is no bug. It is bolder than DPO: it
#   needs the flips in the data to hold it back.

# %%
curves = {
    "dpo": of_margin("dpo"),
    "cdpo  label_smoothing = 0.2": of_margin("cdpo", label_smoothing=0.2),
    "rdpo  flip_rate = 0.2": of_margin("rdpo", flip_rate=0.2),
}
draw(h, curves, "margin h (nats)", [BLUE, RED, GREEN])


# %% [markdown]
# What a *dataset* with 20 % flipped labels feels is the average of a pair and its mirror image. rDPO's average is clean DPO again;
# plain DPO's average stops at the log-odds of the noise, where cDPO's stops at about half of that.


# %%
def over_flipped_labels(losses, flip_rate=0.2):
    return lambda h: (1 - flip_rate) * losses(h) + flip_rate * losses(-h)


draw(h, {label: over_flipped_labels(losses) for label, losses in curves.items()}, "margin h (nats)", [BLUE, RED, GREEN])

# %% [markdown]
# How much noise is too much? Each line below is where the average push is zero, the margin that a dataset with that many flipped labels
# asks for. DPO and IPO are content earlier the more labels are wrong; cDPO, told the true rate, earlier than DPO; rDPO, told it, asks for
# as much as on clean data, that is without end (the top of the picture). What it is told decides: `rdpo, told 0.1` has no end on data with
# fewer flips either, and on noisier data it stops, as DPO does, only later.

# %%
LIMIT = 60.0
margins = jnp.linspace(-LIMIT, LIMIT, 2401)
rates = jnp.linspace(0.01, 0.45, 45)


def settles(name, told=None, **options):
    # The margin at which the average over a pair and its flipped twin is smallest, for every flip rate.
    found = []
    for rate in rates.tolist():
        losses = of_margin(name, **options, **({told: rate} if told else {}))(margins)
        found.append(float(margins[jnp.argmin((1 - rate) * losses + rate * losses[::-1])]))
    return found


figure, axes = plt.subplots(figsize=(10, 4))
for label, found, color, line in (
    ("dpo", settles("dpo"), BLUE, "-"),
    ("cdpo, told the true rate", settles("cdpo", "label_smoothing"), RED, "-"),
    ("rdpo, told the true rate", settles("rdpo", "flip_rate"), GREEN, "-"),
    ("rdpo, told 0.1", settles("rdpo", flip_rate=0.1), GREEN, ":"),
    ("ipo, τ = 0.025", settles("ipo", tau=0.025), GOLD, "-"),
):
    axes.plot(rates, found, line, color=color, linewidth=2.2, label=label)
axes.set(
    title="Where training settles", xlabel="share of flipped labels", ylabel="margin h (nats)", ylim=(0, LIMIT + 1)
)
figure.legend(loc="outside upper left", ncols=5)
plt.show()

# %% [markdown]
# ## 4. The squared loss: IPO
#
# $$\Big(h - \frac{1}{2\tau}\Big)^2$$
#
# IPO asks for a *finite* margin, $1/(2\tau)$, and **penalises overshoot as much as undershoot**: the push is a straight line through the target.
# That keeps the policy near the reference even when the data are separable. Look at the scale on the right: at $h = 0$ the push is $1/\tau$, that is
# 10 for $\tau = 0.1$, where DPO with $\beta = 0.1$ pushes with 0.05. Learning rates do not carry over.

# %%
curves = {f"ipo  τ = {tau}, target {1 / (2 * tau):g} nats": of_margin("ipo", tau=tau) for tau in (0.02, 0.05, 0.1)}
draw(h, curves, "margin h (nats)", BLUES, ylim=(-100, 3000))

# %% [markdown]
# ## 5. Hinges: RSO's hinge-norm and SLiC-HF
#
# **rso_hinge**, $\max(0, 1 - \gamma h)$, pushes with the constant force $\gamma$ until the margin reaches $1/\gamma$ nats, then lets go completely. At the kink
# itself the push is 0.

# %%
curves = {f"rso_hinge  γ = {gamma}": of_margin("rso_hinge", gamma=gamma) for gamma in (0.025, 0.05, 0.1)}
draw(h, curves, "margin h (nats)", BLUES)


# %% [markdown]
# **slic** has no reference. Its hinge looks at the raw gap $\log\pi(\text{chosen}) - \log\pi(\text{rejected})$ and lets go after `delta` nats. What remains
# is the regulariser, a cross-entropy on a target (here the chosen response): a small push that never stops, in place of the reference
# that the others are tied to. Below, the chosen log-prob moves and the rejected one stays. There is no dotted start here: the gap at
# the start of training is whatever the model brings.


# %%
def of_gap(**options):
    def losses(gap):
        logp = jnp.stack([LEVEL + gap, jnp.full_like(gap, LEVEL)], axis=-1)
        return OBJECTIVES["slic"].loss(Responses(logp=logp), **options)

    return losses


gap = jnp.linspace(-10, 10, 401)
curves = {f"slic  regularizer_weight = {w}": of_gap(regularizer_weight=w) for w in (0.0, 0.1, 0.3)}
draw(gap, curves, "logp(chosen) − logp(rejected) (nats)", BLUES, push_ylim=(-0.1, 1.5), start=None)

# %% [markdown]
# ## 6. The pairwise family side by side
#
# The same five pushes, each divided by its own value at the start, so that the shapes can be compared. This picture is most of what
# distinguishes the objectives: what they do with a pair that is *already* right (far right), and with one that is
# *hopelessly* wrong (far left; often a mislabelled one).

# %%
family = {
    "dpo  never satisfied, fading": ("dpo", {}, BLUE),
    "cdpo  turns back": ("cdpo", {"label_smoothing": 0.2}, RED),
    "rdpo  levels off above zero": ("rdpo", {"flip_rate": 0.2}, GREEN),
    "ipo  a spring around its target": ("ipo", {"tau": 0.025}, GOLD),
    "rso_hinge  constant, then nothing": ("rso_hinge", {"gamma": 0.05}, PURPLE),
}
figure, axes = plt.subplots(figsize=(10, 4.4))
for label, (name, options, color) in family.items():
    losses = of_margin(name, **options)
    push = jax.grad(lambda h, losses=losses: losses(h).sum())
    axes.plot(h, push(h) / push(jnp.zeros(1)), color=color, label=label)
axes.axhline(0, color=px.analysis.style.GRAY, linewidth=0.8)
axes.axvline(0, color=px.analysis.style.GRAY, linewidth=0.8, linestyle=":")
axes.set(title="push relative to the start of training", xlabel="margin h (nats)", ylim=(-1.2, 3))
figure.legend(loc="outside upper left", ncols=3)
plt.show()


# %% [markdown]
# ## 7. Single labelled responses: KTO
#
# KTO needs no pairs, only thumbs up or down. Its variable is the log-ratio of one response, $a = \log\pi - \log\pi_\text{ref}$, measured from a
# reference point $z_0$: an estimate of how far the policy has moved *in general*, from responses that belong to other prompts.
#
# - **The push is a bump around $z_0$ and vanishes at both extremes.** An undesirable response that the policy already avoids is left alone, and
#   so is a desirable one that it finds *far* less likely than the reference did. That makes KTO robust to bad labels, and
#   deaf to hard examples.
# - **$z_0$ moves the whole picture** (pale curves: $z_0 = 20$). It is a statistic of the batch (`coupled` in the registry), clamped at 0, and no
#   gradient flows through it.
# - `desirable_weight` and `undesirable_weight` scale the two bumps, to balance the classes.


# %%
def of_log_ratio(label, z0, **options):
    def losses(a):
        logp = LEVEL + a[:, None]
        baseline = jnp.full_like(a, LEVEL)
        batch = Responses(
            logp=logp,
            reference_logp=jnp.full_like(logp, LEVEL),
            target=jnp.full_like(logp, label),
            baseline_logp=baseline + z0,
            baseline_reference_logp=baseline,
        )
        return OBJECTIVES["kto"].loss(batch, **options)

    return losses


curves = {
    "kto  desirable, z₀ = 0": of_log_ratio(1.0, z0=0.0),
    "kto  undesirable, z₀ = 0": of_log_ratio(0.0, z0=0.0),
    "kto  desirable, z₀ = 20": of_log_ratio(1.0, z0=20.0),
    "kto  undesirable, z₀ = 20": of_log_ratio(0.0, z0=20.0),
}
draw(h, curves, "log-ratio a (nats)", [GREEN, RED, "#8fd3bd", "#f0b48a"])


# %% [markdown]
# The same as a surface: the push on one response over its log-ratio and over the reference point. The ridge lies on the diagonal
# $a = z_0$: what is pushed is not what is bad but what is *undecided*. Above it (the policy has moved far in general, this response has
# not) a desirable response is left alone.

# %%
side = jnp.linspace(-60, 60, 81)
points = jnp.linspace(0, 60, 61)


def kto_push(label):
    push = lambda z0: -jax.grad(lambda a: of_log_ratio(label, z0)(a).sum())(side)
    return jax.vmap(push)(points)


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9), sharey=True)
labels = ("log-ratio a (nats)", "reference point z₀ (nats)")
draw_surface(left, side, points, kto_push(1.0), "kto, desirable: push", *labels)
draw_surface(right, side, points, kto_push(0.0), "kto, undesirable: push", *labels)
plt.show()

# %% [markdown]
# ## 8. Single rewarded responses: DRO
#
# With a real-valued reward $r$ and a learned value $V$ of the prompt, the KL-regularised optimum satisfies $r = V + \tau a$ for *every* response.
# **dro** regresses on exactly that, $\frac12 (r - V - \tau a)^2$.
#
# - The loss is zero at $a = (r - V)/\tau$: responses better than the prompt's value rise, worse ones fall, and each *stops* at its own finite log-ratio.
# - The paper divides the policy step by $\tau$, and so does the gradient that `dro` returns (solid). The gradient of the
#   printed loss (dashed) would start at $\tau (r - V)$: tiny for small $\tau$. After the division every $\tau$ starts with the
#   same push $r - V$, and $\tau$ only says how soon it ends.
#
# Here $r - V = 1$.


# %%
def of_policy(name, tau, reward=1.0, value=0.0):
    def losses(a):
        logp = LEVEL + a[:, None]
        batch = Responses(
            logp=logp,
            reference_logp=jnp.full_like(logp, LEVEL),
            target=jnp.full_like(logp, reward),
            value=jnp.full_like(a, value),
        )
        return OBJECTIVES[name].loss(batch, tau=tau)

    return losses


a = jnp.linspace(-4, 8, 401)
taus = (0.2, 0.5, 1.0)
draw(
    a,
    {f"dro  τ = {tau}": of_policy("dro", tau) for tau in taus},
    "log-ratio a (nats)",
    BLUES,
    ylim=(-0.3, 8),
    push_ylim=(-3, 3),
)
for tau, color in zip(taus[:2], BLUES, strict=False):  # at τ = 1 the two agree
    plt.gcf().axes[1].plot(a, tau * (1.0 - tau * a), color=color, linestyle="--", linewidth=1.4)

# %% [markdown]
# As a surface, over the log-ratio and over the advantage $r - V$: two half-planes with the line $a = (r - V)/\tau$ between them. KTO's
# picture fades away from its ridge; DRO's grows, so one wrong reward far from the line outweighs many right ones near it.

# %%
advantages = jnp.linspace(-3, 3, 61)
ratios = jnp.linspace(-8, 8, 81)


def dro_push(tau):
    push = lambda reward: -jax.grad(lambda a: of_policy("dro", tau, reward=reward)(a).sum())(ratios)
    return jax.vmap(push)(advantages)


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9), sharey=True)
labels = ("log-ratio a (nats)", "advantage r − V")
draw_surface(left, ratios, advantages, dro_push(0.2), "dro, τ = 0.2: push", *labels)
draw_surface(right, ratios, advantages, dro_push(1.0), "dro, τ = 1: push", *labels)
plt.show()

# %% [markdown]
# **dro_p** needs no value network: the mean of $r - \tau a$ over the batch stands in for $V$, so the loss is half the batch *variance*. The price is coupling.
# Below, a batch of four responses with rewards 1, 0, 0, −1, of which only the first one's log-ratio moves: its own loss changes, and so do the losses of the
# bystanders. (On the right: what each of these losses contributes to the push on the moving response.) Shifting all log-ratios together changes nothing.

# %%
REWARDS = jnp.array([[1.0], [0.0], [0.0], [-1.0]])


def of_first_response(which):
    def losses(a):
        def batch_losses(first):
            logp = jnp.full_like(REWARDS, LEVEL).at[0, 0].add(first)
            batch = Responses(logp=logp, reference_logp=jnp.full_like(REWARDS, LEVEL), target=REWARDS)
            return OBJECTIVES["dro_p"].loss(batch, tau=0.5)

        return jax.vmap(lambda first: which(batch_losses(first)))(a)

    return losses


curves = {
    "dro_p  batch mean": of_first_response(jnp.mean),
    "the moving response, r = 1": of_first_response(lambda losses: losses[0]),
    "a bystander, r = 0": of_first_response(lambda losses: losses[1]),
    "a bystander, r = −1": of_first_response(lambda losses: losses[3]),
}
draw(a, curves, "log-ratio of the first response (nats)", [BLUE, GREEN, GOLD, RED])


# %% [markdown]
# ## 9. Imitation: SFT
#
# The supervised objective is a straight line: it pushes a response up with the same force however likely it already is. With
# `normalize="length"` (the default) the force is spread over the tokens, so every *response* weighs the same; with `"none"` each response is
# pushed with force 1, so every *token* does, and long responses dominate.


# %%
def of_logp(length):
    def losses(logp):
        batch = Responses(logp=logp[:, None], length=jnp.full_like(logp[:, None], length))
        return OBJECTIVES["sft"].loss(batch)

    return losses


logp = jnp.linspace(-100, 0, 101)
curves = {f"sft  {length} tokens": of_logp(float(length)) for length in (20, 40, 80)}
draw(logp, curves, "logp (nats)", BLUES, push_ylim=(-0.005, 0.055), start=None)


# %% [markdown]
# ## 10. Your own
#
# An objective is one function of `Responses`. Draw it here first; when its push does what you want, move it to `prefjax/losses/` and add
# one entry to `registry.py`. The command line, the start-value check and the tests then know it by name.


# %%
def exponential(r: Responses, *, beta: float = 0.1):
    r.require("reference_logp", group_size=2)
    r = r.masked(whole_groups=True)  # invalid slots hold zeros from here on
    log_ratio = r.logp - r.reference_logp
    return jnp.where(r.valid[:, 0], jnp.exp(-beta * (log_ratio[:, 0] - log_ratio[:, 1])), 0.0)


def mine(h):
    logp = jnp.stack([LEVEL + h, jnp.full_like(h, LEVEL)], axis=-1)
    return exponential(Responses(logp=logp, reference_logp=jnp.full_like(logp, LEVEL)))


curves = {"dpo": of_margin("dpo"), "exponential, ruled by its worst pair": mine}
draw(h, curves, "margin h (nats)", [BLUE, PURPLE], ylim=(-0.5, 12), push_ylim=(-0.05, 1))
