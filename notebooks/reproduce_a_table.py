# %% [markdown]
# # Reproduce a table
#
# A table of a paper is one file: its protocol, its rows, and **claims**, each a measurement with a bound that was set before looking. This notebook runs
# one, IPO's section 5.3.1 (two arms, one of which always wins), reads its verdict, holds it to the committed reference run, and changes one thing.

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
import tempfile

import matplotlib.pyplot as plt

import prefjax as px
from experiments.tables import load_table, running, table_ids, verdicts
from experiments.tables.harness import get_config, load_paper

plt.rcParams.update(px.analysis.style.NOTEBOOK)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## What there is
#
# With the verdicts of the reference runs that are in the tree.

# %%
for name in table_ids():
    kept = running.committed(name)
    print(f"{name:20} {kept['verdict']:8} arXiv {kept['paper']['arxiv']:12} {load_table(name).TABLE.shows}")

# %% [markdown]
# ## What the paper says
#
# In the paper's own words, each with its place, and whether somebody read it there.

# %%
NAME = "ipo.asymptotic"
table = load_table(NAME)
paper = load_paper(Path(table.__file__).with_name("paper.toml"))
for key, fact in paper[NAME.split(".")[1]].items():
    print(f"{key}: {fact['note']} (section {fact['section']}, {fact['version']}, verified: {fact['verified']})")

# %% [markdown]
# ## Run it
#
# The same as `python -m experiments.run ipo.asymptotic --check`. Cells are kept on disk, so a run that was stopped goes on where it was.

# %%
config = get_config(NAME, table)
print(config)
outcome = running.run_table(running.Request(NAME, "cpu", config, folder / "table", folder / "cells", check=True), table)
print(verdicts.markdown_table(outcome.result))

# %%
print("\n".join(verdicts.claim_lines(outcome.result)))
print("against the reference run:", outcome.found or "nothing differs")
print(verdicts.last_line(outcome.result))
assert outcome.fine

# %% [markdown]
# IPO has a minimiser, and it is the paper's; DPO has none: its margin goes on growing with the logarithm of the steps, and how far it is from 1 after so
# many is all that beta decides.

# %%
rows = outcome.result["rows"]
figure, axes = plt.subplots(figsize=(7, 3.8))
for loss, color, marker in (("ipo", px.analysis.style.BLUE, "o"), ("dpo", px.analysis.style.RED, "s")):
    own = [row for row in rows if row["labels"]["loss"] == loss]
    taus = [row["labels"]["tau"] for row in own]
    axes.plot(
        taus, [row["cells"]["closed form"]["value"] for row in own], "--", color=color, lw=1, label=f"{loss}, the paper"
    )
    axes.plot(
        taus,
        [row["cells"]["ours"]["value"] for row in own],
        marker,
        color=color,
        ms=6,
        mec="white",
        label=f"{loss}, ours",
    )
axes.set(
    xscale="log",
    title="How sure of the arm that always wins",
    xlabel="tau, or DPO's beta",
    ylabel="π(y1)",
    ylim=(0.45, 1.03),
)
axes.legend()
plt.show()

# %% [markdown]
# ## Change one thing
#
# Each table says which fields are worth changing. Raters who err once in ten: now DPO has a minimiser too, the log-odds of 0.9 over beta.

# %%
print("\n".join(f"{flag:28} {what}" for flag, what in verdicts.overrides(outcome.result)))
config.prefer = 0.9
other = running.run_table(running.Request(NAME, "cpu", config, folder / "err", folder / "cells"), table)
for before, after in zip(rows, other.result["rows"], strict=True):
    ours = [row["cells"]["ours"]["value"] for row in (before, after)]
    print(
        f"{before['labels']['loss']} {before['labels']['tau']:5}   π(y1) {ours[0]:.4f} → {ours[1]:.4f}   {after['verdict']}"
    )

# %% [markdown]
# The verdicts of a changed protocol are about the changed protocol: a claim that was about clean labels may fail on purpose. All tables and their
# verdicts are in `docs/reproduction.md`; a table of your own begins with the docstring of `experiments/tables/__init__.py`.
