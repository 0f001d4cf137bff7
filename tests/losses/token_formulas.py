"""Objectives that look at single tokens as printed in their papers, in float64 NumPy; a part of `paper_formulas`."""

import numpy as np


def sig(x):
    return 1 / (1 + np.exp(-x))


def margin_of_sums(f):
    """The pair's difference of log-ratios."""
    ratios = f["logp"] - f["reference_logp"]
    return ratios[:, 0] - ratios[:, 1]


def tdpo1(f, *, beta=0.1):
    u, delta = margin_of_sums(f), f["kl"][:, 1] - f["kl"][:, 0]
    return -np.log(sig(beta * u - beta * delta))


def tdpo2(f, *, beta=0.1, alpha=0.5):
    u, delta = margin_of_sums(f), f["kl"][:, 1] - f.get("detached", f["kl"][:, 0])
    return -np.log(sig(beta * u - alpha * beta * delta))


def token_rows(f):
    """Per prompt and side (chosen, rejected): the token arrays, cut to the response's length."""
    names = [name for name in f if name.startswith("token_")]
    for b in range(len(f["length"])):
        ends = f["length"][b].astype(int)
        yield [{name.removeprefix("token_"): f[name][b, k, : ends[k]] for name in names} for k in (0, 1)]


def of_rewards(pairs, beta):
    return np.array([-np.log(sig(beta * chosen - beta * rejected)) for chosen, rejected in pairs])


def ld_dpo(f, *, beta=0.1, alpha=0.5):
    def log_likelihood(y, name, public):
        return sum(x if t < public else alpha * x for t, x in enumerate(y[name]))

    rewards = []
    for w, r in token_rows(f):
        public = min(len(w["logp"]), len(r["logp"]))
        rewards.append(
            [log_likelihood(y, "logp", public) - log_likelihood(y, "reference_logp", public) for y in (w, r)]
        )
    return of_rewards(rewards, beta)


def sampo(f, *, beta=0.1):
    rewards = []
    for w, r in token_rows(f):
        kept = min(len(w["logp"]), len(r["logp"]))
        drawn = [sorted(range(len(y["draw"])), key=lambda t, y=y: y["draw"][t])[:kept] for y in (w, r)]
        rewards.append([sum((y["logp"] - y["reference_logp"])[ts]) for y, ts in zip((w, r), drawn, strict=True)])
    return of_rewards(rewards, beta)


def target_dpo(f, *, beta=0.1):
    ratios = [[y["logp"] - y["reference_logp"] for y in sides] for sides in token_rows(f)]
    masks = [rejected["weight"] for _, rejected in token_rows(f)]
    return of_rewards([(w.sum(), (m * r).sum()) for (w, r), m in zip(ratios, masks, strict=True)], beta)


def sparsepo(f, *, beta=0.1):
    losses = []
    for w, r in token_rows(f):
        u = [(y["weight"] * (y["logp"] - y["reference_logp"])).sum() for y in (w, r)]
        delta = [(y["weight"] * y["kl"]).sum() for y in (w, r)]
        losses.append(-np.log(sig(beta * (u[0] - u[1]) - beta * (delta[1] - delta[0]))))
    return np.array(losses)


def two_d_dpo(f, *, beta=0.1):
    def scored(y):
        """(score, beta-free reward) of every segment."""
        found = []
        for number in sorted(set(y["segment"]) - {0}):
            inside = y["segment"] == number
            score = y["weight"][inside].mean()
            found.append((score, score * (y["logp"] - y["reference_logp"])[inside].sum()))
        return found

    losses = []
    for w, r in token_rows(f):
        best, worst = sorted(scored(w), key=lambda s: -s[0]), sorted(scored(r), key=lambda s: s[0])
        # As many as both have: the longer list's remaining segments take no part.
        pairs = [(chosen[1], rejected[1]) for chosen, rejected in zip(best, worst, strict=False)]
        losses.append(of_rewards(pairs, beta).sum())
    return np.array(losses)
