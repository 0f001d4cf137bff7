"""Rounds: sample from a policy, score the answers, choose among them, train on these, and again from what came out.

    python -m experiments.rounds --config=configs/rounds.py:dpo --workdir=runs/rounds
    python -m experiments.rounds --config=configs/finetune.py:dpo --workdir=runs/rounds --config.init_from=FOLDER \\
        --config.data.train=prompts.jsonl --config.rounds.scorer=reward:runs/reward \\
        --config.rounds.select="rso(count=4)"

PHASES    SFT where the config has config.sft, then in every round: generate, as experiments.generate does;
          annotate, as experiments.annotate, by config.rounds.scorer; select, as experiments.curate, by
          config.rounds.select; train, as experiments.train, from the policy before; and measure the policy on held-out
          prompts.
FOLDER    WORKDIR/sft, and for round 1 WORKDIR/round1: the run that it trained, beside candidates.jsonl, scored.jsonl
          and chosen.jsonl with what made each of them. rounds.md and rounds.json compare the rounds.
STOPPING  A phase that is finished is not done again, and one that was stopped goes on where it was: the same command
          continues. With a larger config.rounds.count it adds rounds.
OPTIONS   config.rounds.*, and those of a run (docs/config.md), which hold for every round.
"""

from pathlib import Path

import jax
from absl import flags

from experiments.command import command_line, start_command
from experiments.config_flag import define_config
from prefjax.interrupts import StopRequest
from prefjax.policies.rounds import RoundsConfig, Stopped, rounds_of, run_rounds
from prefjax.state_files import naming
from prefjax.training.processes import alone_in

_CONFIG = define_config(sections={"rounds": RoundsConfig})
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything goes; the same one continues.")


def main(_) -> None:
    workdir = Path(_WORKDIR.value)
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    command = command_line("rounds")
    with StopRequest() as stop, naming(workdir), alone_in(workdir):
        try:
            page = run_rounds(
                rounds_of(_CONFIG.value.to_dict(), workdir, command), should_stop=lambda step: stop.requested
            )
        except Stopped:
            stop.end()
    print(f"{page.read_text()}\nwritten to {page}", flush=True)


if __name__ == "__main__":
    start_command(main, required=["config", "workdir"])
