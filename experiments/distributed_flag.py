"""The --distributed flag of commands that several processes run together."""

from absl import flags

from prefjax.training.processes import PATIENCE, VARIABLES

flags.disclaim_key_flags()  # the flag belongs to the command that defines it, whose --help shows it


def define_distributed() -> flags.FlagHolder:
    """Defines --distributed; its value goes to `prefjax.training.processes.processes`."""
    return flags.DEFINE_bool(
        "distributed",
        False,
        f"One of several processes with the same command. Clusters JAX knows (TPU slices, SLURM, Open MPI, Kubernetes) "
        f"describe themselves; elsewhere set {VARIABLES[0]} (host:port of process 0), {VARIABLES[1]} and "
        f"{VARIABLES[2]}. All share their folders. When one dies the others end within {PATIENCE + 10} seconds.",
    )
