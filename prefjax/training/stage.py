"""One stage of a run: data, model, objective and loop joined. SFT and every preference objective are stages alike."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from prefjax.data.planning import InOrder
from prefjax.data.store import PreparedTrees, TreeSource
from prefjax.data.tokenizers import Tokenizer, load_tokenizer
from prefjax.losses import OBJECTIVES
from prefjax.models import ModelConfig, init, lora
from prefjax.models.huggingface import is_checkpoint, read_params
from prefjax.training import loop, provenance
from prefjax.training.batches import (
    branches_of,
    describe_shape,
    forecast,
    host_rows,
    load_trees,
    plan_evaluation_rows,
    plan_rows,
    training_plan,
    with_baselines,
)
from prefjax.training.checkpoint import Checkpointer, load_identity, load_params, parameter_hash
from prefjax.training.config import StageConfig, find_objective
from prefjax.training.feed import DeviceFeed, to_devices
from prefjax.training.mesh import make_mesh, parameter_shardings, row_shards
from prefjax.training.optimizers import make_optimizer, make_schedule
from prefjax.training.reference import open_scores, reference_table
from prefjax.training.score_cache import set_facts
from prefjax.training.scoring import Setup
from prefjax.training.step import init_params, init_state, make_eval_step, make_train_step
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
    end_id: int
    eval_trees: TreeSource
    eval_metrics: dict[str, float]
    finished: bool


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
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.chat_template)
    prepared, prepared_eval = (load_trees(config, tokenizer, data_directory, split) for split in ("train", "eval"))
    trees, held_out = with_baselines(config, prepared), with_baselines(config, prepared_eval)
    setup = make_setup(config, tokenizer, trees, mesh)
    shape = plan_rows(config, trees, row_multiple=row_shards(mesh) * config.accumulation)
    print(describe_shape(config, trees, shape), flush=True)

    policy = _start(config, setup, mesh)
    other = config.reference.init_from
    # Without a reference in the loss, the starting point is still what the report compares with. With LoRA the policy's
    # base is never written to, so it is the reference without a copy.
    rewards = setup.objective.trains_reward_model  # compared with nothing
    start_point = policy if setup.lora.rank or rewards else jax.tree.map(jnp.copy, policy)
    reference = load_policy(config, setup.model, mesh, other) if other else start_point
    hashes = {"initial_policy": parameter_hash(policy), "reference": parameter_hash(reference)}
    frozen = policy if setup.lora.rank else reference if setup.reference == "live" else None
    table, lookup = None, None
    if setup.reference == "precomputed":
        cache = open_scores(score_directory(config, workdir), setup, hashes["reference"])
        lookup = functools.partial(reference_table, params=reference, cache=cache, seed=config.seed)
        table = lookup(setup, trees=trees, shape=shape, facts=set_facts(prepared.manifest))
        lookup = functools.partial(lookup, facts=set_facts(prepared_eval.manifest))
    evaluator = _Evaluator(config, setup, held_out, frozen, lookup)

    steps = config.train.steps or forecast(config, trees, shape, None).steps
    optimizer = make_optimizer(config.optimizer, steps)
    followed = reference if setup.update_every else None
    state = init_state(mesh, optimizer, init_params(setup, policy, seed=config.seed), followed)
    identity = {
        "objective": config.objective,
        "loss": dict(config.loss),
        "steps": steps,
        "data": trees.content_hash,
        **hashes,
    }
    if setup.update_every:
        identity["reference_update"] = {"every": setup.update_every, "rate": setup.update_rate}
    if setup.lora.rank:  # what the adapters lie on, so that the run can be loaded as a whole policy
        identity["lora"] = {**dataclasses.asdict(setup.lora), "base": config.init_from, "seed": config.seed}
    checkpointer = Checkpointer(workdir / "checkpoints", keep=config.train.keep_checkpoints, identity=identity)
    plan = training_plan(config)
    feed = DeviceFeed(host_rows(trees, shape, plan, reference=table), mesh)
    start, values = checkpointer.latest_step() or 0, None
    if start:
        state, position = checkpointer.restore(state)
        feed.set_state(position)
        print(f"continuing from step {start}", flush=True)
    elif config.check_start and not other:
        first = next(host_rows(trees, shape, plan, reference=table, prefetch=0))
        values = loop.evaluate(make_eval_step(setup, state.params), state.params, frozen, [to_devices(mesh, first)])
        loop.check_start(values, config.objective, tolerance=2e-2 if setup.model.dtype == "bfloat16" else 1e-3)

    facts = {
        "objective": config.objective,
        "seed": config.seed,
        "steps": steps,
        "config": dataclasses.asdict(config),
        "data": {"train": _data_facts(prepared, trees), "eval": _data_facts(prepared_eval, held_out)},
        "initial_policy": {"from": config.init_from or "the seed", "parameters": hashes["initial_policy"]},
        "reference": {
            "kind": config.reference.kind,
            "from": other or "the initial policy",
            "parameters": hashes["reference"],
        },
        "start_check": values and {name: values.get(name) for name in ("loss", "expected_loss", "start_gap")},
    }
    with (
        provenance.session(workdir, facts, from_step=start) as session,
        Writers(config.train.writers, workdir, resume_step=start, config=facts["config"]) as writer,
    ):
        state, finished = loop.run(
            dataclasses.replace(config.train, steps=steps, epochs=0),
            train_step=make_train_step(setup, optimizer, make_schedule(config.optimizer, steps), state),
            state=state,
            reference_params=frozen,
            feed=feed,
            evaluation=lambda state: evaluator(state.params),
            writer=writer,
            checkpointer=checkpointer,
            should_stop=should_stop,
            start_step=start,
            profile_directory=workdir / "profile",
        )
        session.reached(int(state.step), finished=finished)
    checkpointer.close()
    feed.close()
    return StageResult(
        policy=_plain_policy(setup, state.params["policy"], frozen),
        reference=None if rewards else reference,
        setup=setup,
        tokenizer=tokenizer,
        end_id=prepared.manifest["end_id"],
        eval_trees=held_out,
        eval_metrics=evaluator(state.params) if finished else {},
        finished=finished,
    )


def evaluate_stage(config: StageConfig, workdir: Path, reference_workdir: str, *, data: str = "") -> dict[str, float]:
    """Metrics of a trained run on its held-out set, or on all of another file, in one pass.

    Args:
      reference_workdir: the run whose policy is the reference; empty: fresh parameters from the seed.
      data: a preference file; empty takes the run's own held-out set.
    """
    mesh = make_mesh(config.mesh)
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.chat_template)
    if data:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, eval=data))
    if config.reference.kind == "precomputed":
        config = dataclasses.replace(config, reference=dataclasses.replace(config.reference, kind="live", cache=""))
    directory = Path(config.data.directory or workdir / "data")
    trees = with_baselines(config, load_trees(config, tokenizer, directory, "eval"))
    setup = make_setup(config, tokenizer, trees, mesh)
    reference = load_policy(config, setup.model, mesh, config.reference.init_from or reference_workdir)
    base = _start(config, setup, mesh) if setup.lora.rank else reference
    params = load_params(workdir, placed(mesh, jax.eval_shape(functools.partial(init_params, setup), base)))
    frozen = base if setup.lora.rank or setup.reference == "live" else None
    return _Evaluator(config, setup, trees, frozen)(params)


def make_setup(config: StageConfig, tokenizer: Tokenizer, trees: TreeSource, mesh: Mesh) -> Setup:
    """The static facts of the step. Raises ValueError when model and tokenizer, or objective and options, disagree."""
    objective = find_objective(config.objective)
    return Setup(
        model=complete_model(config.model, tokenizer),
        objective=objective,
        branches=branches_of(trees, objective),
        options=dict(config.loss),
        reference=config.reference.kind,
        value_network=config.value_network,
        reward_head=config.reward_head,
        lora=config.lora,
        accumulation=config.accumulation,
        head_chunk=config.head_chunk,
        seed=config.seed,
        update_every=config.reference.update_every,
        update_rate=config.reference.update_rate,
        mesh=mesh,
    )


def score_directory(config: StageConfig, workdir: Path) -> Path:
    """Where a run finds the scores of a precomputed reference."""
    return Path(config.reference.cache or workdir / "reference")


def complete_model(model: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The model with its vocabulary size. Raises ValueError when that is too small for the tokenizer."""
    if not model.vocab_size:
        model = dataclasses.replace(model, vocab_size=tokenizer.vocab_size)
    if model.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"model.vocab_size={model.vocab_size} is smaller than the tokenizer's {tokenizer.vocab_size}: raise it, or "
            "take the tokenizer that belongs to the checkpoint"
        )
    return model


def load_policy(config: StageConfig, model: ModelConfig, mesh: Mesh, source: str) -> Any:
    """Policy parameters on the mesh, from another run's newest checkpoint, a Hugging Face folder, or the seed.

    Args:
      source: the run's workdir, or the folder; empty: fresh parameters.

    Raises:
      ValueError: the folder holds another architecture than `model`; names the fields. Or a reward model.
    """
    key = jax.random.key(config.seed)
    fresh = functools.partial(init, model)
    shapes = jax.eval_shape(fresh, key)
    shardings = parameter_shardings(mesh, shapes)
    if not source:
        return jax.jit(fresh, out_shardings=shardings)(key)
    if is_checkpoint(source):
        return read_params(source, model, shardings)
    identity = load_identity(Path(source))
    objective = identity.get("objective")
    if objective in OBJECTIVES and OBJECTIVES[objective].trains_reward_model:
        raise ValueError(f"{source} holds a reward model ({objective}), which is no policy: it has no vocabulary head")
    adapted = identity.get("lora")
    if adapted:
        adapters = lora.LoraConfig(**{field.name: adapted[field.name] for field in dataclasses.fields(lora.LoraConfig)})
        base_config = dataclasses.replace(config, seed=adapted["seed"])
        base = lora.freeze(adapters, load_policy(base_config, model, mesh, adapted["base"]))
        saved = load_params(Path(source), {"policy": placed(mesh, lora.shapes(adapters, shapes))})["policy"]
        return jax.jit(functools.partial(lora.merge, adapters), out_shardings=shardings)(base, saved)
    return load_params(Path(source), {"policy": placed(mesh, shapes)})["policy"]


def _start(config: StageConfig, setup: Setup, mesh: Mesh) -> Any:
    """Where training starts; with LoRA the frozen base, in the form that training keeps it."""
    base = lora.freeze(setup.lora, load_policy(config, setup.model, mesh, config.init_from))
    return jax.device_put(base, parameter_shardings(mesh, base))


def _data_facts(prepared: PreparedTrees, trees: TreeSource) -> dict[str, Any]:
    """What a split was read from and where it lies; with mismatched baselines it has another hash than on disk."""
    source = prepared.manifest["source"]
    facts = {"source": source, "directory": str(prepared.directory), "trees": len(trees)}
    return facts | {"content_hash": trees.content_hash, "tokenizer": prepared.manifest["tokenizer"]}


def placed(mesh: Mesh, shapes: Any) -> Any:
    """Shapes with the shardings that parameters of these names have."""
    place = lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
    return jax.tree.map(place, shapes, parameter_shardings(mesh, shapes))


class _Evaluator:
    """The held-out set under its own row shape (it may have another K), compiled once.

    Args:
      lookup: (setup, trees, shape) -> the table of a precomputed reference; None for another one.
    """

    def __init__(
        self, config: StageConfig, setup: Setup, trees: TreeSource, frozen: Any, lookup: Callable | None = None
    ):
        self._setup = dataclasses.replace(setup, branches=branches_of(trees, setup.objective), accumulation=1)
        self._shape = plan_evaluation_rows(config, trees, row_multiple=row_shards(setup.mesh))
        self._trees, self._frozen = trees, frozen
        self._table = None if lookup is None else lookup(self._setup, trees=trees, shape=self._shape)
        self._step = None

    def __call__(self, params: Any) -> dict[str, float]:
        if self._step is None:
            self._step = make_eval_step(self._setup, params)
        batches = host_rows(self._trees, self._shape, InOrder(), reference=self._table)
        on_devices = (to_devices(self._setup.mesh, rows) for rows in batches)
        values = loop.evaluate(self._step, params, self._frozen, on_devices)
        return {name: value for name, value in values.items() if name not in ("expected_loss", "start_gap")}


def _plain_policy(setup: Setup, trained: Any, frozen: Any) -> Any:
    """The trained policy as parameters of the decoder alone: without a value head, adapters merged into the base."""
    trained = {name: leaf for name, leaf in trained.items() if not name.startswith("value_")}
    return jax.jit(functools.partial(lora.merge, setup.lora))(frozen, trained) if setup.lora.rank else trained
