"""One stage of a run: data, model, objective and loop joined. SFT and every preference objective are stages alike."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from prefjax.data.tokenizers import Tokenizer
from prefjax.models import lora
from prefjax.options import deciding, differences
from prefjax.rows.arrays import Rows, RowShape
from prefjax.rows.store import PreparedTrees, TreeSource
from prefjax.training import loop, provenance
from prefjax.training.batches import (
    beyond_context,
    describe_shape,
    evaluation_shape,
    forecast,
    host_rows,
    in_training,
    load_trees,
    training_batching,
    training_shape,
    with_baselines,
)
from prefjax.training.checkpoint import Checkpointer, Proof, load_proof, parameter_hash
from prefjax.training.config import StageConfig, defaults_before, objective_of
from prefjax.training.evaluator import Evaluator
from prefjax.training.feed import DeviceFeed, to_devices
from prefjax.training.greedy_samples import GreedySamples
from prefjax.training.mesh import make_mesh, parameter_shardings, row_shards
from prefjax.training.optimizers import make_optimizer, warmup_of
from prefjax.training.parameters import complete_model, context_of, read_policy, tokenizer_of
from prefjax.training.processes import alone_in
from prefjax.training.reference import open_scores, reference_table
from prefjax.training.score_cache import set_facts
from prefjax.training.scoring import Setup
from prefjax.training.step import TrainState, init_state, make_eval_step, make_train_step
from prefjax.training.writers import Writers, check_installed


@dataclasses.dataclass(frozen=True)
class StageResult:
    """What a finished or stopped stage leaves behind. `policy` and `reference` are parameters on the mesh.

    Of a reward model `policy` has the reward head in place of the vocabulary's, and `reference` is None.
    """

    policy: Any
    reference: Any
    setup: Setup
    tokenizer: Tokenizer
    end_ids: list[int]
    eval_trees: TreeSource
    eval_metrics: dict[str, float]
    finished: bool


class Split(NamedTuple):
    """One split of a stage's data: trees as prepared, as trained on (with mismatched baselines they are others), and
    the static shape of their rows; `context` is what the policy was made for, `in_training` what the training data has
    of it too."""

    prepared: PreparedTrees
    trees: TreeSource
    shape: RowShape
    context: int | None
    in_training: Mapping[str, int] = MappingProxyType({})

    def facts(self) -> dict[str, Any]:
        """What it was read from and where it lies."""
        manifest = self.prepared.manifest
        return {
            "source": manifest["source"],
            "directory": str(self.prepared.directory),
            "trees": len(self.trees),
            "content_hash": self.trees.content_hash,
            "tokenizer": manifest["tokenizer"],
            "end_ids": manifest["end_ids"],
            **beyond_context(self.trees, self.context),
            **self.in_training,
        }


class Start(NamedTuple):
    """Where a stage starts: the policy (with LoRA the adapters' base), what it is compared with, and their hashes."""

    policy: Any
    reference: Any
    hashes: dict[str, str]


def run_stage(
    config: StageConfig, workdir: Path, data_directory: Path, *, should_stop: Callable[[int], bool] = lambda step: False
) -> StageResult:
    """Trains, or continues, one stage in `workdir`: checkpoints/, metrics.jsonl, run.json and a score table go there.

    Args:
      data_directory: where prepared data lies; the stages of a run share it.
      should_stop: asked after every step; True saves a checkpoint and returns with `finished` False.
    """
    check_installed(config.train.writers)
    mesh = make_mesh(config.mesh)
    tokenizer = tokenizer_of(config.data, config.model)
    before = _epochs_before(workdir, config)
    train, held_out = load_splits(config, tokenizer, data_directory, before)
    setup = make_setup(config, tokenizer, mesh)
    row_multiple = row_shards(mesh) * config.accumulation
    print(describe_shape(config, train.trees, train.shape, before, row_multiple=row_multiple), flush=True)
    begin = open_start(config, setup)
    train_table, eval_table = _reference_tables(config, setup, begin, workdir, train, held_out)
    evaluator = Evaluator(setup, held_out.trees, held_out.shape, reference=eval_table)

    steps = config.train.steps or forecast(config, train.trees, train.shape, None, before).steps
    _say_warmup(config, steps)
    state = init_state(setup, begin.policy, make_optimizer(config.optimizer, steps), reference=begin.reference)
    known = {"steps": steps, "epochs": [*before, config.train.epochs or None], "init_from": config.init_from}
    checkpointer = _checkpointer(config, workdir, _identity(config, train, held_out, begin), known)
    feed = DeviceFeed(_rows(config, mesh, train, train_table, before), mesh)
    start_step, checked, restored = 0, None, checkpointer.restore(state.saved())
    if restored:
        start_step, state = restored.proof.step, state.replace(**restored.state)
        feed.set_state(restored.proof.position)
        _say_continued(workdir, restored.proof, config, steps)
    elif config.check_start and not config.reference.init_from:
        checked = _check_start(config, setup, state, train, train_table)
    facts = _facts(config, steps, train, held_out, begin, checked)
    with (
        alone_in(workdir),
        checkpointer,
        provenance.session(workdir, facts, from_step=start_step) as session,
        Writers(config.train.writers, workdir, resume_step=start_step, config=facts["config"]) as writer,
    ):
        parts = loop.Parts(
            train_step=make_train_step(setup),
            feed=feed,
            evaluation=lambda state: evaluator(state.params, state.frozen, state.carried),
            answer=_answering(config, setup, tokenizer, (train, held_out), workdir, start_step),
            writer=writer,
            checkpointer=checkpointer,
            should_stop=should_stop,
            trace=workdir / "profile",
        )
        length = dataclasses.replace(config.train, steps=steps, epochs=0)
        state, evaluated = loop.run(length, parts, state, start_step=start_step)
        session.reached(int(state.step), finished=evaluated is not None)
    feed.close()
    return StageResult(
        policy=plain_policy(setup, state),
        reference=None if setup.objective.requires.reward_head else begin.reference,
        setup=setup,
        tokenizer=tokenizer,
        end_ids=train.prepared.manifest["end_ids"],
        eval_trees=held_out.trees,
        eval_metrics=dict(evaluated or {}),
        finished=evaluated is not None,
    )


def load_splits(
    config: StageConfig, tokenizer: Tokenizer, directory: Path, before: tuple[int, ...] = (), *, say: bool = True
) -> tuple[Split, Split]:
    """The train and the eval split, prepared or found. Prints what became of every record and what is odd if `say`.

    Args:
      before: see `training_batching`.
    """
    prepared = [load_trees(config, tokenizer, directory, split, say=say) for split in ("train", "eval")]
    trees = [with_baselines(config, own, training=own is prepared[0]) for own in prepared]
    shapes = training_shape(config, trees[0], before), evaluation_shape(config, trees[1])
    train, held_out = (Split(*own, context_of(config.init_from)) for own in zip(prepared, trees, shapes, strict=True))
    held_out = held_out._replace(in_training=in_training(prepared[1], prepared[0]))
    if not say:
        return train, held_out
    if held_out.in_training:
        prompts, whole = held_out.in_training.values()
        print(
            f"[eval] {prompts} of {len(held_out.trees)} records have a prompt that the training data has too, {whole} "
            "with the same responses, so they do not measure what is new: leave these out, or data.eval empty, which "
            "holds prompts out",
            flush=True,
        )
    for name, split in (("train", train), ("eval", held_out)):
        if found := beyond_context(split.trees, split.context):
            print(
                f"[{name}] {found['beyond_context']} of {len(split.trees)} records are longer than the {split.context} "
                f"positions that {config.init_from} was made for, up to {found['longest']} tokens: give "
                f"--config.data.encoding.max_length={split.context}",
                flush=True,
            )
    return train, held_out


def make_setup(config: StageConfig, tokenizer: Tokenizer, mesh: Mesh) -> Setup:
    """The static facts of the step. Raises ValueError when model and tokenizer, or objective and options, disagree."""
    alike = ("value_network", "reward_head", "lora", "accumulation", "head_chunk", "seed")
    return Setup(
        complete_model(config.model, tokenizer),
        objective_of(config),
        reference=config.reference.kind,
        update_every=config.reference.update_every,
        update_rate=config.reference.update_rate,
        skip_non_finite=config.train.skip_non_finite > 0,
        mesh=mesh,
        **{name: getattr(config, name) for name in alike},
    )


def open_start(config: StageConfig, setup: Setup) -> Start:
    """The policy that training starts from, in the form that training keeps it, and the reference.

    Without a reference in the loss, the starting point is still what the report compares with.
    """
    policy = lora.freeze(setup.lora, read_policy(config.init_from, setup.model, setup.mesh, seed=config.seed))
    policy = jax.device_put(policy, parameter_shardings(setup.mesh, policy))
    other = config.reference.init_from
    reference = read_policy(other, setup.model, setup.mesh, seed=config.seed) if other else policy
    return Start(policy, reference, {"initial_policy": parameter_hash(policy), "reference": parameter_hash(reference)})


def score_directory(config: StageConfig, workdir: Path) -> Path:
    """Where a run finds the scores of a precomputed reference."""
    return Path(config.reference.cache or workdir / "reference")


def plain_policy(setup: Setup, state: TrainState) -> Any:
    """The trained policy as parameters of the decoder alone: without a value head, adapters merged into the base."""
    trained = {name: leaf for name, leaf in state.params["policy"].items() if not name.startswith("value_")}
    if not setup.lora.rank:
        return trained
    return jax.jit(functools.partial(lora.merge, setup.lora))(state.frozen, trained)


def _reference_tables(
    config: StageConfig, setup: Setup, start: Start, workdir: Path, train: Split, held_out: Split
) -> tuple[Float32[np.ndarray, "n N"] | None, Float32[np.ndarray, "m N"] | None]:
    """Log-probs of the train and the eval split's branches under a precomputed reference; None under another one."""
    if setup.reference != "precomputed":
        return None, None
    cache = open_scores(score_directory(config, workdir), setup, start.hashes["reference"])
    table = functools.partial(reference_table, params=start.reference, cache=cache, seed=config.seed)
    return (
        table(setup, trees=train.trees, shape=train.shape, facts=set_facts(train.prepared.manifest)),
        table(
            dataclasses.replace(setup, accumulation=1),
            trees=held_out.trees,
            shape=held_out.shape,
            facts=set_facts(held_out.prepared.manifest),
        ),
    )


def _answering(
    config: StageConfig,
    setup: Setup,
    tokenizer: Tokenizer,
    splits: tuple[Split, Split],
    workdir: Path,
    start_step: int,
) -> Callable[[int, TrainState], None]:
    """What answers `train.eval_samples` prompts by the policy of a state."""
    train, held_out = splits
    samples = GreedySamples(
        setup,
        held_out.trees,
        tokenizer,
        train.prepared.manifest["end_ids"],
        count=config.train.eval_samples,
        workdir=workdir,
        resume_step=start_step,
    )
    return lambda step, state: samples(step, plain_policy(setup, state)) if samples else None


def _checkpointer(config: StageConfig, workdir: Path, identity: dict[str, Any], facts: dict[str, Any]) -> Checkpointer:
    keep, defaults = config.train.keep_checkpoints, {"config": defaults_before(config)}
    return Checkpointer(workdir / "checkpoints", keep=keep, identity=identity, facts=facts, defaults=defaults)


def _identity(config: StageConfig, train: Split, held_out: Split, start: Start) -> dict[str, Any]:
    """What decides the result of a stage: options, and hashes of what other options name."""
    return {
        "config": deciding(config),
        "training data": train.trees.content_hash,
        "held-out data": held_out.trees.content_hash,
        "tokenizer": train.prepared.manifest["tokenizer"]["fingerprint"],
        **start.hashes,
    }


def _say_warmup(config: StageConfig, steps: int) -> None:
    """Where it is shorter than asked."""
    warmup, asked = warmup_of(config.optimizer, steps)
    if warmup < asked:
        option = "steps" if config.optimizer.warmup_steps else "ratio"
        print(
            f"warm-up: {warmup} of {steps} steps, not {asked} (optimizer.warmup_{option}): half of a run is the most",
            flush=True,
        )


def _say_continued(workdir: Path, proof: Proof, config: StageConfig, steps: int) -> None:
    """Also what the run lacked of options that came after it. Raises ValueError where a run is to become shorter than
    it already is."""
    if proof.step > steps:
        raise ValueError(f"{workdir} is at step {proof.step}, beyond train.steps={steps}: raise it, or a new --workdir")
    before = proof.facts["steps"]
    longer = f"; {steps} steps, not {before}: schedules of the learning rate go by that from here on"
    print(f"continuing from step {proof.step}{longer if steps != before else ''}", flush=True)
    came = [f"{name}={value!r}" for name, _, value in differences(proof.identity["config"], deciding(config))]
    if came:
        print(
            f"{workdir} was begun before these options were there, and has their defaults: {', '.join(came)}",
            flush=True,
        )


def _epochs_before(workdir: Path, config: StageConfig) -> tuple[int, ...]:
    """Numbers of epochs after which the run in a folder was to end before it is made longer now.

    Raises:
      ValueError: it was to be longer than now, and so its data are packed.
    """
    proof, now = load_proof(workdir), config.train.epochs or None
    *before, last = proof.facts["epochs"] if proof else [now]
    if last == now:
        return tuple(before)
    if last is None:
        raise ValueError(
            f"{workdir} counts its length in steps, and packs its data without an end: give train.steps, not "
            f"train.epochs={now}, or a new --workdir"
        )
    if now is not None and now < last:
        raise ValueError(
            f"{workdir} packs its data for train.epochs={last}: give as many or more, not train.epochs={now}, or a new "
            "--workdir"
        )
    return (*before, last)


def _rows(
    config: StageConfig,
    mesh: Mesh,
    train: Split,
    table: Float32[np.ndarray, "n N"] | None,
    before: tuple[int, ...] = (),
    *,
    prefetch: int = 2,
) -> Iterator[Rows]:
    """Training rows of this process."""
    accumulation, batching = config.accumulation, training_batching(config, before)
    return host_rows(
        mesh, train.trees, train.shape, batching, accumulation=accumulation, reference=table, prefetch=prefetch
    )


def _check_start(
    config: StageConfig, setup: Setup, state: TrainState, train: Split, table: Float32[np.ndarray, "n N"] | None
) -> dict[str, float]:
    """Metrics of the first batch, held against the closed form at policy == reference."""
    rows = next(_rows(config, setup.mesh, train, table, prefetch=0))
    metrics = make_eval_step(setup)(state.params, state.frozen, to_devices(setup.mesh, rows), state.carried)
    loop.check_start(metrics, config.objective, tolerance=2e-2 if setup.model.dtype == "bfloat16" else 1e-3)
    return dict(metrics)


def _facts(
    config: StageConfig, steps: int, train: Split, held_out: Split, start: Start, checked: dict[str, float] | None
) -> dict[str, Any]:
    """What run.json says of the stage."""
    return {
        "objective": config.objective,
        "seed": config.seed,
        "steps": steps,
        "context": train.context,
        "config": dataclasses.asdict(config),
        "data": {"train": train.facts(), "eval": held_out.facts()},
        "initial_policy": {"from": config.init_from or "the seed", "parameters": start.hashes["initial_policy"]},
        "reference": {
            "kind": config.reference.kind,
            "from": config.reference.init_from or "the initial policy",
            "parameters": start.hashes["reference"],
        },
        "start_check": checked and {name: checked.get(name) for name in ("loss", "expected_loss", "start_gap")},
    }
