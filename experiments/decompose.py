"""Decomposes the preferences of a file into principal directions, each a reward of its own (DRM, arXiv 2502.13131).

    python -m experiments.decompose --workdir=runs/reward --data=pairs.jsonl --eval=other.jsonl --output=runs/heads

Reads the hidden states from which the reward model of `workdir` reads its reward, for both responses of every pair of
`data`, and writes the directions in which they differ most: OUTPUT/heads.npz (directions [c, D], variances [c]) and
OUTPUT/heads.json, with the accuracy of each direction, and of the trained head, on the pairs of `eval`.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from experiments.command import start_command
from prefjax.contrib import decompose
from prefjax.contrib.decomposition import head_accuracies
from prefjax.data.encoding import encode_all
from prefjax.data.formats import RecordFormat
from prefjax.data.sources import open_all
from prefjax.interrupts import StopRequest
from prefjax.policies.rewards import RewardModel, last_response_states, open_reward_model, response_table
from prefjax.rows.store import MemoryTrees

_WORKDIR = flags.DEFINE_string("workdir", None, "The --workdir of a run that trained a reward model.")
_DATA = flags.DEFINE_string("data", None, "Pairs to decompose, as config.data.train.")
_EVAL = flags.DEFINE_string("eval", None, "Other pairs, on which the directions are judged.")
_COUNT = flags.DEFINE_integer("count", 10, "How many directions.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write.")


def differences(model: RewardModel, data: str) -> np.ndarray:
    """[n, D] hidden state of the chosen minus that of the rejected response, of all pairs that can be encoded."""
    records = []
    for source in open_all(data):
        own, account = source.read(RecordFormat())
        print(account)
        records += [record for record in own if record.kind == "pair"]
    trees, account = encode_all(records, model.tokenizer, model.data.encoding)
    print(account, flush=True)
    if not trees:
        raise ValueError(f"{data} holds no pair that can be encoded")
    states = response_table(model.setup, model.params, MemoryTrees(trees), last_response_states)
    return states[:, 0] - states[:, 1]


@StopRequest()
def main(_) -> None:
    model = open_reward_model(_WORKDIR.value)
    found = decompose(differences(model, _DATA.value), _COUNT.value)
    held_out = differences(model, _EVAL.value)
    accuracies = head_accuracies(found.directions, held_out)
    facts = {"pairs": len(held_out), "variances": found.variances.tolist(), "accuracies": accuracies.tolist()}
    if model.setup.reward_head.width == 1:
        facts["trained_head"] = float(head_accuracies(np.asarray(model.params["reward_head"]).T, held_out)[0])
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    np.savez(output / "heads.npz", **found._asdict())
    (output / "heads.json").write_text(json.dumps(facts, indent=1) + "\n")
    share = found.variances / found.variances.sum()
    for index, (variance, accuracy) in enumerate(zip(share, accuracies, strict=True)):
        print(f"direction {index}: {variance:.1%} of the variance of all {len(share)}, accuracy {accuracy:.1%}")
    if "trained_head" in facts:
        print(f"trained head: accuracy {facts['trained_head']:.1%}")
    print(f"written to {output}")


if __name__ == "__main__":
    start_command(main, required=["workdir", "data", "eval", "output"])
