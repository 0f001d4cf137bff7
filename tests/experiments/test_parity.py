"""The parity command, with stored logits of transformers in place of torch, which no environment of the tests has."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.parity import compare
from tests.models.test_huggingface import FIXTURES


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_logits_are_held_against_those_of_transformers(name):
    stored = load_file(FIXTURES / name / "expected.safetensors")
    shift = {"float64": 0.0, "float32": 0.5}
    theirs = lambda tokens, dtype: stored["logits"].astype(dtype) + shift[dtype]
    found = compare(str(FIXTURES / name), stored["tokens"].astype(np.int64), theirs)
    assert found["ours"] < 1e-5 and found["logit"] == np.abs(stored["logits"]).max()
    assert found["theirs"] == pytest.approx(0.5 / found["logit"], rel=1e-3)
    other = stored["tokens"][::-1].astype(np.int64)
    assert compare(str(FIXTURES / name), other, theirs)["ours"] > 0.1, "other tokens, other logits"


@pytest.mark.slow
def test_without_torch_the_command_says_what_it_needs():
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['parity', '--model=x']; import runpy; "
    code += "runpy.run_module('experiments.parity', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and "experiments.parity needs torch: pip install torch in an environment" in done.stderr
    assert "Traceback" not in done.stderr
