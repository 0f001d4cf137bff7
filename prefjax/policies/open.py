"""Opens a trained run, one of its stages, or a Hugging Face folder, as a policy."""

import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from prefjax.data.config import DataConfig
from prefjax.models import decoder, hub, huggingface
from prefjax.options import build
from prefjax.state_files import read_object
from prefjax.training.config import StageConfig
from prefjax.training.mesh import MeshConfig, make_mesh, parameter_shardings
from prefjax.training.parameters import Policy, complete_model, ends_of_run, read_policy, stop_ids, tokenizer_of
from prefjax.training.runs import origin, stage_of


def open_mesh(text: str = "") -> Mesh:
    """A mesh of all devices from text like "data=2,fsdp=-1,tensor=1"; "" cuts parameters over all of them."""
    parts = [part.partition("=") for part in (text or "data=1,fsdp=-1").split(",")]
    try:
        sizes = {name.strip(): int(size) for name, _, size in parts}
    except ValueError:
        raise ValueError(f"mesh {text!r}: write data=2,fsdp=4,tensor=1, or -1 for all that are left") from None
    return make_mesh(build(MeshConfig, sizes, "mesh"))


def open_policy(
    source: str | Path,
    mesh: Mesh | None = None,
    *,
    dtype: str | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: str = "",
    date: str = "",
    config: StageConfig | None = None,
) -> Policy:
    """The policy of a run's newest checkpoint, of the stage that a run's folder holds (WORKDIR/sft), or of a Hugging
    Face folder, or model of the hub, "hf:owner/name".

    Args:
      mesh: where parameters lie; None cuts them over all devices of this process.
      dtype: what is computed in. None: what the run was trained in, or the folder says (float32, unless bfloat16);
        a folder's parameters are held in it too.
      chat_template: as in `data.chat_template`; None: the run's, or the folder's own.
      chat_template_kwargs, date: as in `data`; empty: the run's.
      config: how a run was trained; None: as its folder says.

    Raises:
      FileNotFoundError: the run has no checkpoint.
      ValueError: it is none of these, or the run trained a reward model.
    """
    source, mesh = hub.local(source), open_mesh() if mesh is None else mesh
    if source and huggingface.is_checkpoint(source):
        if dtype is None:
            stored = read_object(Path(source) / "config.json")
            says = stored.get("dtype", stored.get("torch_dtype"))
            dtype = "bfloat16" if says == "bfloat16" else "float32"
        model = huggingface.read_config(source, dtype=dtype, param_dtype=dtype)
        params = huggingface.read_params(source, model, parameter_shardings(mesh, decoder.shapes(model)))
        told = dict(chat_template=chat_template, chat_template_kwargs=chat_template_kwargs, date=date)
        data = DataConfig(tokenizer=source, **told)
        tokenizer = tokenizer_of(data, model)
    else:
        stage = stage_of(source)[0] if config is None else config
        told = dict(chat_template=chat_template, chat_template_kwargs=chat_template_kwargs, date=date)
        data = dataclasses.replace(stage.data, **{name: value for name, value in told.items() if value})
        tokenizer = tokenizer_of(data, stage.model)
        model = complete_model(stage.model, tokenizer)
        model = dataclasses.replace(model, dtype=dtype or model.dtype)
        params = read_policy(source, model, mesh, seed=stage.seed)
    folder = origin(source if config is None else config.init_from)
    stops = stop_ids(folder, tokenizer, ends_of_run(source))
    return Policy(model, params, mesh, tokenizer, stops, data, folder)


def open_reference(workdir: str | Path, policy: Policy) -> Policy:
    """The reference that a run's policy was trained against, or the policy that it started from."""
    stage, start = stage_of(workdir)
    source = stage.reference.init_from or start
    return dataclasses.replace(policy, params=read_policy(source, policy.model, policy.mesh, seed=stage.seed))
