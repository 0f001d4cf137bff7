# %% [markdown]
# # Bring your model and your data
#
# A Hugging Face folder (config.json, safetensors, tokenizer) and a JSONL file of preferences go in; samples and a folder that transformers loads come
# out. To download nothing, both are made here first: a tiny Llama with random weights, and forty pairs. Put your own paths in their place.

# %%
# Where there is no checkout, as in Colab: what `git clone` takes for your copy of the repository.
ADDRESS = ""

import subprocess
import sys
from pathlib import Path

here = Path.cwd()
places = [here, here.parent, here / "prefjax_checkout"]
checkout = next((place for place in places if (place / "prefjax" / "__init__.py").exists()), None)
if checkout is None:
    if not ADDRESS:
        raise ValueError(
            "set ADDRESS above to what `git clone` takes for your copy of prefjax, and run this cell again"
        )
    checkout = here / "prefjax_checkout"
    subprocess.run(["git", "clone", "--quiet", ADDRESS, checkout], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", f"{checkout}[report,hub,commands]"], check=True)
sys.path.insert(0, str(checkout))

# %%
import dataclasses
import itertools
import tempfile

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import prefjax as px

plt.rcParams.update(px.analysis.style.NOTEBOOK)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Stand-ins for yours

# %%
from prefjax.data.tokenizer_files import write_tokenizer
from prefjax.models.huggingface import save_huggingface

tiny = px.ModelConfig(vocab_size=264, num_layers=1, width=48, num_heads=4, num_kv_heads=2, head_width=12, mlp_width=128)
MODEL = folder / "my-model"
save_huggingface(MODEL, tiny, px.init(tiny, seed=0), settings={"max_position_embeddings": 512})
write_tokenizer(MODEL, "byte")

DATA = folder / "preferences.jsonl"
cities = ("Bern", "Oslo", "Lima", "Cairo", "Delhi", "Quito", "Riga", "Turin", "Kyoto", "Porto")
questions = ("How far is {}?", "Is {} old?", "Who lives in {}?", "When was {} built?")
px.data.write_rows(
    DATA,
    [
        {"prompt": question.format(city), "chosen": "Let me look that up.", "rejected": "No idea, sorry."}
        for question, city in itertools.product(questions, cities)
    ]
    + [{"prompt": "And this?", "chosen": "A row without its rejected response."}],
)
print(sorted(path.name for path in MODEL.iterdir()))

# %% [markdown]
# ## Open them
#
# `px.load` takes the folder, and later the folder of a run. What cannot be used of a file is counted by reason, never dropped in silence.

# %%
policy = px.load(MODEL)
records, account = px.read_records(DATA, progress=False)
dpo = px.objective("dpo", beta=0.1)
train, held_out = px.encode(records, policy.tokenizer, dpo, holdout=0.2)
print(account)
print(len(train), "trees to train on,", len(held_out), "held out; prompts share", end=" ")
print(f"{px.rows.summarize_lengths([train[i] for i in range(len(train))]).token_saving:.2f} times the tokens")

# %% [markdown]
# ## Train
#
# LoRA adapters of rank 4 on the folder's weights, which stay and are the reference at the same time. For a real model: the command in
# `docs/getting_started.md`, which adds checkpoints, a mesh and a report.

# %%
setup = px.Setup(policy.model, dpo, lora=px.LoraConfig(rank=4))
state = px.init_state(setup, policy.params, optax.adamw(1e-2))
step = px.make_train_step(setup)
log = []
for rows in itertools.islice(px.pack(train, dpo, tokens_per_step=1024, seed=0), 30):
    state, metrics = step(state, rows)
    log.append(dict(metrics))
measured = px.evaluate(setup, state, held_out)
print({name: round(measured[name], 3) for name in ("loss", "reward_accuracy", "margin")})

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.2))
left.plot([line["loss"] for line in log], color=px.analysis.style.BLUE)
left.plot(len(log) - 1, measured["loss"], "o", color=px.analysis.style.RED, label="held out, at the end")
left.set(title="Loss", xlabel="step")
left.legend()
for name, color in (("chosen", px.analysis.style.BLUE), ("rejected", px.analysis.style.RED)):
    right.plot([line[f"{name}_logp_change"] for line in log], color=color, label=name)
right.axhline(0, color=px.analysis.style.GRAY, lw=0.8)
right.set(title="Log-prob against the reference", xlabel="step", ylabel="nats")
right.legend(loc="center right")
plt.show()

# %% [markdown]
# ## Generate
#
# Random weights have nothing to say yet; a model of yours does.

# %%
tuned = dataclasses.replace(policy, params=px.training.stage.plain_policy(setup, state))
prompts = held_out.prompts[:3]
asked = [px.data.Prompt(policy.tokenizer.decode(ids[1:].tolist()), "notebook", tokens=ids) for ids in prompts]
options = px.policies.GenerationConfig(px.models.SamplingOptions(max_new_tokens=16), samples=2)
for prompt, responses in zip(asked, px.policies.respond(tuned, asked, options), strict=True):
    for response in responses:
        print(f"{prompt.text!r}: {len(response.tokens)} tokens, log-prob {response.logps.sum():.1f} nats")

# %% [markdown]
# ## Export
#
# A folder like the one that came in, adapters merged. Read back, it gives the same logits.

# %%
EXPORTED = folder / "my-tuned-model"
px.export_policy(tuned, EXPORTED)
back = px.load(EXPORTED)
same = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), tuned.params, back.params)
print(sorted(path.name for path in EXPORTED.iterdir()))
print("largest difference of a parameter:", max(jax.tree.leaves(same)))
assert max(jax.tree.leaves(same)) == 0.0

# %% [markdown]
# ```python
# from transformers import AutoModelForCausalLM, AutoTokenizer
# AutoModelForCausalLM.from_pretrained("my-tuned-model")
# ```
#
# Shapes of data that a file may have, chats among them: `docs/shapes.md` and `docs/chats.md`.
