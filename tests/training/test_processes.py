"""Several processes, as far as one can play them: programs that reduce over processes, one after the other."""

import jax
import jax.numpy as jnp
import pytest

from prefjax.training.processes import one_at_a_time


@pytest.mark.parametrize("processes,backend,waits", [(2, "cpu", True), (1, "cpu", False), (2, "gpu", False)])
def test_cpus_of_several_processes_wait_for_every_program(processes, backend, waits, monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "block_until_ready", lambda results: waited.append(results) or results)
    results = jnp.ones(2)
    assert one_at_a_time(results) is results and len(waited) == waits
