"""Every objective as printed in its paper, in float64 NumPy: no shared links or reducers, loops where the paper sums.

`f` holds the fields of one batch as arrays ([B, K] or [B]), all slots valid; each function returns [B] losses. What a
paper takes no gradient through is read from `f["detached"]` where it is there, so that finite differences keep it.
"""

import math

import numpy as np

from tests.losses.reward_formulas import bt, bt_margin, bt_ranking, gpm, pl_ranking  # noqa: F401
from tests.losses.token_formulas import ld_dpo, sampo, sparsepo, target_dpo, tdpo1, tdpo2, two_d_dpo  # noqa: F401


def sig(x):
    return 1 / (1 + np.exp(-x))


def columns(f):
    """policy chosen and rejected, reference chosen and rejected."""
    return f["logp"][:, 0], f["logp"][:, 1], f["reference_logp"][:, 0], f["reference_logp"][:, 1]


def lengths(f):
    return f["length"][:, 0], f["length"][:, 1]


def scores(f):
    return f["target"][:, 0], f["target"][:, 1]


def dpo(f, *, beta=0.1):
    pw, pl, rw, rl = columns(f)
    return -np.log(sig(beta * ((pw - rw) - (pl - rl))))


def dynamic_beta(f, *, beta=0.1, scaling=0.6, momentum=0.9, per="batch"):
    """With M0 = 0 before the batch."""
    pw, pl, rw, rl = columns(f)
    gap = (pw - rw) - (pl - rl)
    usual = (1 - momentum) * gap.mean()
    return np.maximum(1e-3, beta * (1 + scaling * ((gap if per == "pair" else gap.mean()) - usual)))


def beta_dpo(f, **options):
    pw, pl, rw, rl = columns(f)
    return -np.log(sig(f.get("detached", dynamic_beta(f, **options)) * ((pw - rw) - (pl - rl))))


def swapped(f):
    return f | {name: f[name][:, ::-1] for name in ("logp", "reference_logp")}


def dpo_norm(f, *, beta=5.0):
    (pw, pl, rw, rl), (nw, nl) = columns(f), lengths(f)
    return -np.log(sig(beta / nw * (pw - rw) - beta / nl * (pl - rl)))


def r_dpo(f, *, beta=0.1, alpha=0.01):
    (pw, pl, rw, rl), (nw, nl) = columns(f), lengths(f)
    return -np.log(sig(beta * (pw - rw) - beta * (pl - rl) - (alpha * nl - alpha * nw)))


def dpop(f, *, beta=0.3, penalty=50.0):
    pw, pl, rw, rl = columns(f)
    return -np.log(sig(beta * (pw - rw - pl + rl - penalty * np.maximum(0, rw - pw))))


def hypo(f, *, beta=0.1):
    pw, pl, rw, rl = columns(f)
    return -np.log(sig(beta * ((pw - pl) - np.maximum(0, rw - rl))))


def ipo(f, *, tau=0.1, normalize="none"):
    pw, pl, rw, rl = columns(f)
    nw, nl = lengths(f) if normalize == "length" else (1, 1)
    return ((pw - rw) / nw - (pl - rl) / nl - 1 / (2 * tau)) ** 2


def rso_sigmoid(f, *, gamma=0.05):
    return dpo(f, beta=gamma)


def rso_hinge(f, *, gamma=0.05):
    pw, pl, rw, rl = columns(f)
    return np.maximum(0, 1 - gamma * ((pw - rw) - (pl - rl)))


def gpo(f, *, beta=0.1, link="exponential"):
    pw, pl, rw, rl = columns(f)
    z = beta * (pw - rw - pl + rl)
    return {
        "logistic": np.log(1 + np.exp(-z)),
        "hinge": np.maximum(0, 1 - z),
        "squared": (1 - z) ** 2,
        "truncated_quadratic": np.maximum(0, 1 - z) ** 2,
        "exponential": np.exp(-z),
    }[link]


def discopop(f, *, beta=0.05, tau=0.05):
    pw, pl, rw, rl = columns(f)
    z = beta * (pw - rw - pl + rl)
    modulation = sig(z / tau)
    return (1 - modulation) * -np.log(sig(z)) + modulation * np.exp(-z)


def wpo_weight(f):
    weight = np.exp(((f["logp"] - f["log_sum_p2"]) / f["length"]).sum(-1))
    return np.minimum(weight, 1)


def wpo(f, *, beta=0.01):
    return f.get("detached", wpo_weight(f)) * dpo(f, beta=beta)


def rpo_nll(f, *, beta=0.1, alpha=1.0):
    return dpo(f, beta=beta) - alpha * f["logp"][:, 0] / f["length"][:, 0]


def rationale_dpo(f, *, beta=0.1, gamma=1.0):
    return dpo(f, beta=beta) - gamma * f["auxiliary_logp"]


def cdpo(f, *, beta=0.1, label_smoothing=0.1):
    return (1 - label_smoothing) * dpo(f, beta=beta) + label_smoothing * dpo(swapped(f), beta=beta)


def rdpo(f, *, beta=0.1, flip_rate=0.1):
    clean, flipped = dpo(f, beta=beta), dpo(swapped(f), beta=beta)
    return ((1 - flip_rate) * clean - flip_rate * flipped) / (1 - 2 * flip_rate)


def soft_ce(f, *, beta=0.1):
    p = f["target_probability"]
    return p * dpo(f, beta=beta) + (1 - p) * dpo(swapped(f), beta=beta)


def mmpo(f, *, beta=0.1, gamma=1.0):
    sw, sl = scores(f)
    p = np.exp(gamma * sw) / (np.exp(gamma * sw) + np.exp(gamma * sl))
    return p * dpo(f, beta=beta) + (1 - p) * dpo(swapped(f), beta=beta)


def margin_dpo(f, *, beta=0.1):
    pw, pl, rw, rl = columns(f)
    return -np.log(sig(beta * (pw - rw) - beta * (pl - rl) - f["margin"]))


def odpo(f, *, beta=0.5, alpha=1.0):
    (pw, pl, rw, rl), (sw, sl) = columns(f), scores(f)
    with np.errstate(divide="ignore", invalid="ignore"):
        losses = -np.log(sig(beta * (pw - rw - pl + rl) - alpha * np.log(sw - sl)))
    return np.where(sw > sl, losses, 0)


def reward_rpo(f, *, beta=0.1, eta=1.0, distance="backward_kl"):
    (pw, pl, rw, rl), (sw, sl) = columns(f), scores(f)
    z, wanted = beta * (pw - rw - pl + rl), eta * (sw - sl)
    if distance == "squared":
        return (z - wanted) ** 2
    p, q = (sig(wanted), sig(z)) if distance == "backward_kl" else (sig(z), sig(wanted))
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def apo_zero(f, *, beta=0.1):
    pw, pl, rw, rl = columns(f)
    return 1 - sig(beta * (pw - rw)) + sig(beta * (pl - rl))


def apo_down(f, *, beta=0.1):
    pw, pl, rw, rl = columns(f)
    return sig(beta * (pw - rw)) + 1 - sig(beta * (pw - rw) - beta * (pl - rl))


def bco_pair(f, *, beta=0.1):
    pw, pl, rw, rl = columns(f)
    return -np.log(sig(beta * (pw - rw))) - np.log(sig(-beta * (pl - rl)))


def nca_pair(f, *, beta=0.1):
    pw, pl, rw, rl = columns(f)
    reward_w, reward_l = beta * (pw - rw), beta * (pl - rl)
    return -np.log(sig(reward_w)) - 0.5 * np.log(sig(-reward_w)) - 0.5 * np.log(sig(-reward_l))


def sppo(f, *, beta=1e-3):
    (pw, pl, rw, rl), (win_w, win_l) = columns(f), scores(f)
    eta = 1 / beta
    return (pw - rw - eta * (win_w - 0.5)) ** 2 + (pl - rl - eta * (win_l - 0.5)) ** 2


def cal_dpo(f, *, beta=2e-3, weight=0.5):
    pw, pl, rw, rl = columns(f)
    return dpo(f, beta=1.0) + weight * ((pw - rw - 1 / (2 * beta)) ** 2 + (pl - rl + 1 / (2 * beta)) ** 2)


def exo_pair(f, *, beta=0.1, label_smoothing=1e-3):
    pw, pl, rw, rl = columns(f)
    s, e = sig(beta * (pw - rw - pl + rl)), label_smoothing
    return s * np.log(s / (1 - e)) + (1 - s) * np.log((1 - s) / e)


def fdpo(f, *, beta=0.1, alpha=0.5):
    ratio = np.exp(f["logp"] - f["reference_logp"])
    derivative = np.log(ratio) + 1 if alpha == 0 else (1 - ratio**-alpha) / alpha
    return np.logaddexp(0, -(beta * derivative[:, 0] - beta * derivative[:, 1]))  # up to 1e12 here


def fdpo_js(f, *, beta=0.1):
    ratio = np.exp(f["logp"] - f["reference_logp"])
    derivative = np.log(2 * ratio / (ratio + 1))
    return -np.log(sig(beta * derivative[:, 0] - beta * derivative[:, 1]))


def by_rank(own, sorted_losses):
    """Sorted per-rank losses back at the prompts whose own number has that rank."""
    losses = np.empty_like(own)
    losses[np.argsort(own)] = sorted_losses
    return losses


def aot(f, *, beta=0.01):
    pw, pl, rw, rl = columns(f)
    delta = np.sort(pw - pl) - np.sort(rw - rl)
    return by_rank(pw - pl, -np.log(sig(beta * delta)))


def aot_unpaired(f, *, beta=0.01):
    pw, pl, rw, rl = columns(f)
    delta = np.sort(pw - rw) - np.sort(pl - rl)
    return by_rank(pw - rw, -np.log(sig(beta * delta)))


def slic(f, *, delta=1.0, regularizer_weight=0.1):
    target = f["auxiliary_logp"] if "auxiliary_logp" in f else f["logp"][:, 0]
    return np.maximum(0, delta - f["logp"][:, 0] + f["logp"][:, 1]) - regularizer_weight * target


def rso_hinge_raw(f, *, gamma=0.05):
    return np.maximum(0, 1 - gamma * (f["logp"][:, 0] - f["logp"][:, 1]))


def simpo(f, *, beta=2.0, gamma=0.5):
    (pw, pl, *_), (nw, nl) = columns(f), lengths(f)
    return -np.log(sig(beta / nw * pw - beta / nl * pl - gamma))


def alphapo(f, *, beta=2.5, gamma=0.1, alpha=0.25):
    p = np.exp(f["logp"] / f["length"])
    reward = np.log(p) if alpha == 0 else (1 - p**-alpha) / alpha
    return -np.log(sig(beta * reward[:, 0] - beta * reward[:, 1] - gamma))


def cpo(f, *, beta=0.1, alpha=1.0):
    pw, pl, *_ = columns(f)
    return -np.log(sig(beta * pw - beta * pl)) - alpha * pw


def orpo(f, *, weight=0.1):
    p = np.exp(f["logp"] / f["length"])
    odds = p / (1 - p)
    return -np.log(p[:, 0]) + weight * -np.log(sig(np.log(odds[:, 0] / odds[:, 1])))


def simper(f):
    perplexity = np.exp(-f["logp"] / f["length"])
    return -1 / perplexity[:, 0] + 1 / perplexity[:, 1]


def npo(f, *, beta=0.1):
    ratio = np.exp(f["logp"] - f["reference_logp"])
    return np.where(f["target"] == 1, 0, 2 / beta * np.log(1 + ratio**beta)).mean(-1)


def simnpo(f, *, beta=1.0, delta=0.0):
    loss = -2 / beta * np.log(sig(-beta / f["length"] * f["logp"] - beta * delta))
    return np.where(f["target"] == 1, 0, loss).mean(-1)


def dft_weights(f, **_):
    return np.exp(f["token_logp"])


def dft(f):
    """TRL multiplies the log-prob of every token by its probability, detached."""
    weights = f.get("detached", dft_weights(f))
    losses = []
    for logp, weight, length in zip(f["token_logp"], weights, f["length"].astype(int), strict=True):
        of_prompt = [-(w[:n] * x[:n]).mean() for x, w, n in zip(logp, weight, length, strict=True)]
        losses.append(np.mean(of_prompt))
    return np.array(losses)


def triples(f):
    """(gold, chosen, rejected) of every prompt, as (logp, tokens) each: scores in order, and the last."""
    for logp, n, target in zip(f["logp"], f["length"], f["target"], strict=True):
        ranked = sorted(zip(target, logp, n, strict=True), key=lambda response: -response[0])
        yield [ranked[i][1:] for i in (0, 1, -1)]


def tpo(f, *, beta=0.01, alpha=1.0):
    return np.array([-np.log(sig(beta * (w[0] - lost[0]))) - alpha * g[0] / g[1] for g, w, lost in triples(f)])


def tpo_l(f, *, beta=2.0, gamma=1.6, alpha=0.05):
    margin = lambda w, lost: beta * (w[0] / w[1] - lost[0] / lost[1] - gamma / beta)
    return np.array([-np.log(sig(margin(w, lost))) - alpha * g[0] / g[1] for g, w, lost in triples(f)])


def kto_pair(f, *, beta=0.1):
    """TRL 0.8: the KL of a half is its clamped mean, and the losses of 2 B responses are averaged."""
    pw, pl, rw, rl = columns(f)
    chosen_kl, rejected_kl = max((pw - rw).mean(), 0), max((pl - rl).mean(), 0)
    desirable = 1 - sig(beta * ((pw - rw) - rejected_kl))
    return (desirable + 1 - sig(beta * (chosen_kl - (pl - rl)))) / 2


def kto_shift(f, momentum=0.0, **_):
    """With a mean of 0 before the batch."""
    return max(0, (1 - momentum) * np.mean(f["baseline_logp"] - f["baseline_reference_logp"]))


def kto(f, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0, momentum=0.0):
    z0 = f.get("detached", kto_shift(f, momentum=momentum))
    a = f["logp"] - f["reference_logp"]
    desirable = desirable_weight * (1 - sig(beta * (a - z0)))
    undesirable = undesirable_weight * (1 - sig(beta * (z0 - a)))
    return np.where(f["target"] == 1, desirable, undesirable).mean(-1)


def apo_zero_unpaired(f, *, beta=0.1):
    s = sig(beta * (f["logp"] - f["reference_logp"]))
    return np.where(f["target"] == 1, 1 - s, s).mean(-1)


def bco_shift(f, *, beta=0.01, momentum=0.0):
    """With means of 0 before the batch."""
    reward = (1 - momentum) * beta * (f["logp"] - f["reference_logp"])
    return (reward[f["target"] == 1].mean() + reward[f["target"] == 0].mean()) / 2


def bco(f, *, beta=0.01, momentum=0.0):
    reward = beta * (f["logp"] - f["reference_logp"])
    shift = f.get("detached", bco_shift(f, beta=beta, momentum=momentum))
    return np.where(f["target"] == 1, -np.log(sig(reward - shift)), -np.log(sig(-(reward - shift)))).mean(-1)


def ulma_binary(f, *, beta=0.1):
    s, y = sig(beta * (f["logp"] - f["reference_logp"])), f["target"]
    return -(y * np.log(s) + (1 - y) * np.log(1 - s)).mean(-1)


def ulma(f, *, beta=0.1):
    s = sig(beta * (f["logp"] - f["reference_logp"]))
    return np.where(f["target"] == 1, -f["logp"], -np.log(1 - s)).mean(-1)


def pmpo(f, *, alpha=0.5, beta=0.5):
    """Equation 10 is of one x: the two means are over its responses, and the batch's over the x that have the kind."""
    prompts, having = len(f["logp"]), [max(1, (f["target"] == label).any(-1).sum()) for label in (0, 1)]
    losses = []
    for logp, label, kl in zip(f["logp"], f["target"], f["kl"], strict=True):
        accepted, rejected = logp[label == 1], logp[label == 0]
        objective = -beta * kl.mean()
        objective += alpha * accepted.mean() * prompts / having[1] if len(accepted) else 0
        objective -= (1 - alpha) * rejected.mean() * prompts / having[0] if len(rejected) else 0
        losses.append(-objective)
    return np.array(losses)


def dro(f, *, tau=1.0):
    a = f["logp"] - f["reference_logp"]
    return (0.5 * (f["target"] - f["value"][:, None] - tau * a) ** 2).mean(-1)


def dro_p(f, *, tau=1.0):
    e = f["target"] - tau * (f["logp"] - f["reference_logp"])
    return (0.5 * (e - e.mean()) ** 2).mean(-1)


def ulma_continuous(f, *, beta=0.1):
    return ((f["target"] - beta * (f["logp"] - f["reference_logp"])) ** 2).mean(-1)


def gpo_score(f, *, beta=1e-3):
    return ((f["logp"] - f["reference_logp"] - f["target"] / beta) ** 2).mean(-1)


def rewards_and_scores(f, beta):
    return zip(beta * (f["logp"] - f["reference_logp"]), f["target"], strict=True)


def ranking(x):
    """Indices from the highest down, equal ones in their order."""
    return sorted(range(len(x)), key=lambda i: -x[i])


def softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def pl_dpo(f, *, beta=0.1):
    losses = []
    for s, psi in rewards_and_scores(f, beta):
        likelihood, left = 1.0, np.exp(s)[ranking(psi)]
        for k in range(len(left)):
            likelihood *= left[k] / left[k:].sum()
        losses.append(-np.log(likelihood))
    return np.array(losses)


def lipo_lambda(f, *, beta=0.05):
    losses = []
    for s, psi in rewards_and_scores(f, beta):
        tau = {i: 1 + rank for rank, i in enumerate(ranking(s))}
        total = 0.0
        for i in range(len(s)):
            for j in range(len(s)):
                if psi[i] > psi[j]:
                    gain = abs(2 ** psi[i] - 2 ** psi[j])
                    discount = abs(1 / math.log(1 + tau[i]) - 1 / math.log(1 + tau[j]))
                    total += gain * discount * math.log(1 + math.exp(-(s[i] - s[j])))
        losses.append(total)
    return np.array(losses)


def infonca(f, *, beta=0.01, reward_temperature=1.0):
    pairs = rewards_and_scores(f, beta)
    return np.array([-(softmax(psi / reward_temperature) * np.log(softmax(s))).sum() for s, psi in pairs])


def dpo_rw(f, *, beta=0.5, reward_temperature=0.5):
    return infonca(f, beta=beta, reward_temperature=reward_temperature)


def exo_rw(f, *, beta=0.5, reward_temperature=0.5):
    losses = []
    for s, psi in rewards_and_scores(f, beta):
        p, q = softmax(s), softmax(psi / reward_temperature)
        losses.append((p * np.log(p / q)).sum())
    return np.array(losses)


def nca(f, *, beta=0.01, reward_temperature=1.0):
    losses = []
    for s, psi in rewards_and_scores(f, beta):
        losses.append(-(softmax(psi / reward_temperature) * np.log(sig(s)) + np.log(sig(-s)) / len(s)).sum())
    return np.array(losses)


def slic_list(f, *, delta=1.0, regularizer_weight=0.1):
    losses = []
    for row, (logp, psi) in enumerate(zip(f["logp"], f["target"], strict=True)):
        order = ranking(psi)
        total = 0.0
        for i in range(len(order)):
            for j in range(i + 1, len(order)):
                total += max(0, delta * abs(i - j) - logp[order[i]] + logp[order[j]])
        target = f["auxiliary_logp"][row] if "auxiliary_logp" in f else logp[order[0]]
        losses.append(total - regularizer_weight * target)
    return np.array(losses)


def sft(f, *, normalize="length"):
    return (-f["logp"] / (f["length"] if normalize == "length" else 1)).mean(-1)


# objective -> what of it is detached, from the same options.
DETACHED = {
    "wpo": lambda f, **_: wpo_weight(f),
    "beta_dpo": dynamic_beta,
    "tdpo2": lambda f, **_: f["kl"][:, 0].copy(),
    "bco": bco_shift,
    "kto": kto_shift,
    "dft": dft_weights,
}
