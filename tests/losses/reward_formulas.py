"""Objectives of reward models as printed in their papers, in float64 NumPy; the rest of `paper_formulas`."""

import itertools

import numpy as np


def minus_log_sigmoid(x):
    return -np.log(1 / (1 + np.exp(-x)))


def bt_margin(f, *, centering=0.0, margin=None):
    """Llama 2, equation 2, and TRL's centring."""
    chosen, rejected = f["features"][:, 0, 0], f["features"][:, 1, 0]
    margin = f["margin"] if margin is None else margin
    return minus_log_sigmoid(chosen - rejected - margin) + centering * (chosen + rejected) ** 2


def bt(f, *, centering=0.0):
    return bt_margin(f, centering=centering, margin=0.0)


def bt_ranking(f):
    """InstructGPT, equation 1: every comparison of a prompt, over their number."""
    losses = []
    for rewards, scores in zip(f["features"][..., 0], f["target"], strict=True):
        pairs = [(i, j) for i, j in itertools.permutations(range(len(scores)), 2) if scores[i] > scores[j]]
        losses.append(np.mean([minus_log_sigmoid(rewards[i] - rewards[j]) for i, j in pairs]))
    return np.array(losses)


def pl_ranking(f):
    """Plackett-Luce: the best is chosen of all, the next of those that are left, and so on."""
    losses = []
    for rewards, scores in zip(f["features"][..., 0], f["target"], strict=True):
        left, total = list(np.argsort(-scores)), 0.0
        while left:
            odds = np.exp(rewards[left])
            total -= np.log(odds[0] / odds.sum())
            left.pop(0)
        losses.append(total)
    return np.array(losses)


def gpm(f, *, tau=0.1):
    """GPM, equation 4.1, with its operator written out as a matrix."""
    chosen, rejected = f["features"][:, 0], f["features"][:, 1]
    operator = np.kron(np.eye(chosen.shape[1] // 2), np.array([[0.0, -1.0], [1.0, 0.0]]))
    score = np.array([(operator @ v) @ other for v, other in zip(chosen, rejected, strict=True)])
    return minus_log_sigmoid(score / tau)
