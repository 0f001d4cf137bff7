"""The library as the README shows it: its script runs as it stands there, and what it promises of it holds."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import optax
import pytest

import prefjax as px

ROOT = Path(__file__).resolve().parents[1]
MODEL = dict(num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_width=8, mlp_width=24)


def readme_block(beginning):
    """The one Python block of the README that begins so."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if block.startswith(beginning)]
    return block


@pytest.mark.slow
def test_the_readmes_script_learns_and_speaks():
    """In a process of its own, with nothing prepared: held-out accuracy above that of the start, and four samples."""
    code = readme_block("import itertools, optax, prefjax as px")
    assert len(code.strip().splitlines()) <= 22, "a training loop is a few lines"
    # Training is most of it: compiled as users do, on the one device they have.
    environment = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics, samples = done.stdout.splitlines()
    assert float(re.search(r"'reward_accuracy': ([\d.]+)", metrics)[1]) > 0.7
    assert [type(sample) for sample in ast.literal_eval(samples)] == [str] * 4


def test_importing_costs_nothing_before_jax_is_needed():
    code = "import time; began = time.perf_counter(); import prefjax; print(time.perf_counter() - began)\n"
    code += "import sys; assert not {'jax', 'numpy'} & set(sys.modules); prefjax.ByteTokenizer, prefjax.data.prepare\n"
    code += "assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.3


def test_tab_completion_shows_about_as_many_names_as_one_remembers():
    shown = [name for name in dir(px) if not name.startswith("_")]
    rooms = {"analysis", "contrib", "data", "fit", "losses", "models", "policies", "rows", "training"}
    assert rooms <= set(shown) and len(shown) - len(rooms) <= 40


@pytest.fixture(scope="module")
def parts():
    tok, objective = px.ByteTokenizer(), px.objective("dpo", beta=2.0)
    train, held_out = px.encode(px.synthetic.World(0).pairs(96), tok, objective, holdout=0.25)
    setup = px.Setup(px.ModelConfig(vocab_size=tok.vocab_size, **MODEL), objective)
    return tok, objective, train, held_out, setup


def test_every_record_is_accounted_for(parts):
    tok, objective, train, held_out, _ = parts
    assert len(train) + len(held_out) == 96 and 10 < len(held_out) < 40
    assert train.account["read"].read == 96 and train.account["encode"].kept == len(train)
    assert not set(map(bytes, (p.tobytes() for p in train.prompts))) & {p.tobytes() for p in held_out.prompts}
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b"}]
    kept, _ = px.encode(rows, tok, objective)
    assert len(kept) == 1 and kept.account["read"].dropped == {"missing_field": 1}
    with pytest.raises(ValueError, match="no record is left to train on(.|\n)*missing_field"):
        px.encode(rows[1:], tok, objective)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kto", "dro", "slic", "pl_dpo", "sft"])
def test_objectives_of_every_kind_take_the_same_loop(name):
    """Baselines, value networks, rankings, no reference: none of it is the caller's business."""
    tok, world = px.ByteTokenizer(), px.synthetic.World(0)
    records = {"kto": world.unpaired, "dro": world.rewarded, "sft": world.demonstrations}.get(name, world.pairs)
    made = world.rankings(64, 3) if name == "pl_dpo" else records(64)
    objective = px.objective(name)
    train, held_out = px.encode(made, tok, objective, holdout=0.25)
    setup = px.Setup(px.ModelConfig(vocab_size=tok.vocab_size, **MODEL), objective)
    state = px.init_state(setup, px.init(setup.model, seed=0), optax.adam(1e-3))
    step = px.make_train_step(setup)
    for rows in px.pack(train, objective, tokens_per_step=2048, epochs=1):
        state, metrics = step(state, rows)
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    assert np.isfinite(px.evaluate(setup, state, held_out)["loss"])


def test_pairs_in_memory_have_their_scores_where_these_are_read():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 8.5, "score_rejected": 2.0}
    (scored,), _ = px.encode([row], px.ByteTokenizer(), "mmpo")
    (labelled,), _ = px.encode([row], px.ByteTokenizer(), "sppo")
    assert (scored.targets.tolist(), labelled.targets.tolist()) == ([8.5, 2.0], [1.0, 0.0])


@pytest.mark.slow
def test_a_loss_of_ones_own_goes_where_objectives_go(parts, monkeypatch):
    """The README's, defined as in a notebook; by name, as a function, and by module:function as commands take it."""
    names = {"jnp": __import__("jax.numpy").numpy, "__name__": "__main__"}
    exec(compile(readme_block("import prefjax as px\nfrom prefjax.losses.reducers"), "cell", "exec"), names)
    loss = names["squared_hinge"]
    tok, _, train, held_out, _ = parts
    objective = px.objective(loss, beta=0.5)
    assert px.objective("squared_hinge").options == {"beta": 0.1} and objective.options == {"beta": 0.5}
    setup = px.Setup(px.ModelConfig(vocab_size=tok.vocab_size, **MODEL), objective)
    state = px.init_state(setup, px.init(setup.model, seed=0), optax.sgd(1e-2))
    assert px.evaluate(setup, state, held_out)["loss"] == pytest.approx(1.0)
    state, metrics = px.make_train_step(setup)(state, next(px.pack(train, objective, tokens_per_step=1024)))
    assert metrics["loss"] == pytest.approx(1.0)
    module = type(sys)("my_losses")
    module.squared_hinge = loss
    monkeypatch.setitem(sys.modules, "my_losses", module)
    assert px.objective("my_losses:squared_hinge", beta=2).options == {"beta": 2.0}
    exec(compile(readme_block("import prefjax as px\nfrom prefjax.losses.reducers"), "cell", "exec"), names)
    assert px.objective("squared_hinge").apply is names["squared_hinge"], "a cell that is run again"


@pytest.mark.slow
def test_metrics_are_numbers_and_print_themselves(parts):
    _, objective, train, _, setup = parts
    state = px.init_state(setup, px.init(setup.model, seed=0), optax.sgd(0.0))
    _, metrics = px.make_train_step(setup)(state, next(px.pack(train, objective, tokens_per_step=1024)))
    assert metrics["loss"] == pytest.approx(np.log(2), abs=1e-5) and "loss 0.6931" in repr(metrics)
    assert {type(value) for value in dict(metrics).values()} == {float}
