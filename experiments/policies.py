"""Opens a trained run, or a Hugging Face folder, as a policy to sample from and to score with; and loads scorers."""

import dataclasses
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from jax.sharding import Mesh

from experiments.door import build, origin, reward_scorer, run_config
from prefjax.data.encoding import encode
from prefjax.data.prompt_rows import answered, plain_text
from prefjax.data.records import Text
from prefjax.data.report import Rejection
from prefjax.data.store import MemoryTrees
from prefjax.data.tokenizers import load_tokenizer
from prefjax.data.trees import TokenTree
from prefjax.models import decoder, huggingface
from prefjax.training.config import StageConfig, find_objective
from prefjax.training.export import stop_ids
from prefjax.training.generation import Candidates, Policy, Scorer
from prefjax.training.mesh import MeshConfig, make_mesh, parameter_shardings
from prefjax.training.rollouts import score_trees
from prefjax.training.stage import complete_model, load_policy

SCORERS = "logp, mean_logp, implicit:WORKDIR, reward:WORKDIR, or module:function"


def open_mesh(text: str) -> Mesh:
    """A mesh of all devices from text like "data=2,fsdp=-1,tensor=1"."""
    parts = [part.partition("=") for part in (text or "data=1,fsdp=-1").split(",")]
    try:
        sizes = {name.strip(): int(size) for name, _, size in parts}
    except ValueError:
        raise ValueError(f"mesh {text!r}: write data=2,fsdp=4,tensor=1, or -1 for all that are left") from None
    return make_mesh(build(MeshConfig, sizes, "mesh"))


def stage_of(workdir: str | Path) -> tuple[StageConfig, str]:
    """The stage that was trained in a folder, the SFT stage's folder included, and where it started from."""
    workdir = Path(workdir)
    inside = workdir.name == "sft" and not (workdir / "config.json").is_file()
    path = (workdir.parent if inside else workdir) / "config.json"
    if not path.is_file():
        raise ValueError(f"{workdir} is neither a run's --workdir nor a Hugging Face folder: there is no {path}")
    run = run_config(ml_collections.ConfigDict(json.loads(path.read_text())))
    if inside and run.sft is None:
        raise ValueError(f"{workdir}: the run had no SFT stage")
    if inside:
        return run.sft, run.sft.init_from
    return run.stage, run.stage.init_from if run.sft is None else str(workdir / "sft")


def open_policy(source: str, mesh: Mesh, *, dtype: str | None = None, chat_template: str | None = None) -> Policy:
    """The policy of a run's newest checkpoint, or of a Hugging Face folder.

    Args:
      dtype: what is computed in. None: what the run was trained in, or the folder says (float32, unless bfloat16);
        a folder's parameters are held in it too.
      chat_template: as in `data.chat_template`; None: the run's, or the folder's own.
    """
    if huggingface.is_checkpoint(source):
        if dtype is None:
            stored = json.loads((Path(source) / "config.json").read_text())
            says = stored.get("dtype", stored.get("torch_dtype"))
            dtype = "bfloat16" if says == "bfloat16" else "float32"
        model = huggingface.read_config(source, dtype=dtype, param_dtype=dtype)
        params = huggingface.read_params(source, model, parameter_shardings(mesh, decoder.shapes(model)))
        tokenizer = load_tokenizer(source, chat_template)
    else:
        stage, _ = stage_of(source)
        tokenizer = load_tokenizer(stage.data.tokenizer, chat_template or stage.data.chat_template)
        model = complete_model(stage.model, tokenizer)
        model = dataclasses.replace(model, dtype=dtype or model.dtype)
        params = load_policy(stage, model, mesh, source)
    return Policy(model, params, mesh, tokenizer, tuple(stop_ids(origin(source), tokenizer)))


def load_function(spec: str) -> Callable[..., Any]:
    """The function that "module:function" names. Raises ValueError where there is none."""
    module, _, name = spec.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{spec!r}: write module:function, importable from here ({error})") from error
    if not callable(function):
        raise ValueError(f"{spec!r} is no function")
    return function


def load_scorer(spec: str, mesh: Mesh) -> Scorer:
    """A scorer by name.

    logp               the sampler's own log-prob of the completion, nats
    mean_logp          the same, per token
    implicit:WORKDIR   beta (log pi - log ref) of a trained run, the reward that its policy is optimal for up to a
                       function of the prompt (DPO, arXiv 2305.18290, equation 5); beta = 1 where its loss has none
    reward:WORKDIR     what a run's reward model says
    module:function    function(prompt, completions) -> scores, called once a prompt; a prompt is text or a list of
                       messages {"role", "content"}
    """
    if spec == "logp":
        return lambda candidates: [own.logps for own in candidates]
    if spec == "mean_logp":
        mean = lambda own: [logp / length for logp, length in zip(own.logps, own.lengths, strict=True)]
        return lambda candidates: [mean(own) for own in candidates]
    kind, _, rest = spec.partition(":")
    if kind == "implicit" and rest:
        return _implicit(rest, mesh)
    if kind == "reward" and rest:
        model = reward_scorer(rest)
        return lambda candidates: model([own.prompt for own in candidates], [_answers(own) for own in candidates])
    if not rest:
        raise ValueError(f"scorer {spec!r}: choose {SCORERS}")
    function = load_function(spec)
    return lambda candidates: [function(plain_text(own.prompt), list(own.completions)) for own in candidates]


def _answers(own: Candidates) -> tuple[Text, ...]:
    """The completions as responses to their prompt: text, or a message where that is a chat."""
    return answered(own.prompt, own.completions, [0.0] * len(own.completions)).responses


def _implicit(workdir: str, mesh: Mesh) -> Scorer:
    policy = open_policy(workdir, mesh)
    stage, start = stage_of(workdir)
    if not find_objective(stage.objective).needs_reference:
        raise ValueError(f"implicit:{workdir}: {stage.objective} has no reference, so its policy is no implicit reward")
    reference = load_policy(stage, policy.model, mesh, stage.reference.init_from or start)
    beta = float(stage.loss.get("beta", find_objective(stage.objective).options.get("beta", 1.0)))

    def score(candidates: Sequence[Candidates]) -> list[list[float]]:
        trees = MemoryTrees(_tree(own, policy) for own in candidates)
        ours, theirs = score_trees(policy.model, mesh, [policy.params, reference], trees)
        rewards = beta * (ours.astype(np.float64) - theirs)
        return [row[: len(own.completions)].tolist() for row, own in zip(rewards, candidates, strict=True)]

    return score


def _tree(own: Candidates, policy: Policy) -> TokenTree:
    """One tree of all completions, which may be equal, as a training record's would not."""
    trees = [encode(answered(own.prompt, [text], [0.0]), policy.tokenizer) for text in own.completions]
    if rejected := next((tree for tree in trees if isinstance(tree, Rejection)), None):
        raise ValueError(f"a completion of {str(own.prompt)[:80]!r} cannot be scored: {rejected.reason}, {rejected}")
    return TokenTree(trees[0].prompt, tuple(tree.responses[0] for tree in trees), np.zeros(len(trees), np.float32))
