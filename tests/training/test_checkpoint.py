"""Checkpoints that prove themselves: every flipped bit is seen, and the newest sound one is taken."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from prefjax.training import checkpoint
from prefjax.training import fingerprints as fingerprints_lib
from prefjax.training.checkpoint import (
    Checkpointer,
    DamagedCheckpointError,
    NonFiniteStateError,
    load_params,
    load_proof,
)
from prefjax.training.fingerprints import fingerprints

IDENTITY, FACTS = {"config": {"seed": 0}}, {"steps": 9}


def state(step):
    """Random bits do not compress, so that a flip is seen by no code of the compression."""
    rng = np.random.default_rng(step)
    policy = {"head": jnp.array(rng.normal(size=(8, 16)), jnp.float32), "scale": jnp.array(rng.normal(size=16))}
    return {"step": jnp.int32(step), "params": {"policy": policy}}


def open_run(workdir, **changes):
    return Checkpointer(workdir / "checkpoints", **{"keep": 2, "identity": IDENTITY, "facts": FACTS} | changes)


def save(workdir, *steps, **changes):
    checkpointer = open_run(workdir, **changes)
    for step in steps:
        checkpointer.save(step, state(step), {"position": 10 * step})
    checkpointer.close()


def restored(workdir):
    checkpointer = open_run(workdir)
    found = checkpointer.restore(state(0))
    checkpointer.close()
    return found


def assert_is(found, step):
    assert (found.proof.step, found.proof.position) == (step, {"position": 10 * step})
    jax.tree.map(np.testing.assert_array_equal, found.state, state(step))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints of steps 1 and 2."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 1, 2)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def files(workdir):
    return sorted(path for path in (workdir / "checkpoints" / "2").rglob("*") if path.is_file())


def test_any_flipped_bit_and_any_cut_is_seen_or_changes_nothing(saved, tmp_path, capfd):
    """A bit of every file: the state is that of step 2 as it was, or step 1 is taken and step 2 is named."""
    rng = np.random.default_rng(0)
    taken = []
    for trial, file in enumerate(2 * files(saved)):
        workdir = shutil.copytree(saved, tmp_path / str(trial))
        path = workdir / file.relative_to(saved)
        data = bytearray(path.read_bytes())
        if trial < len(files(saved)):
            del data[len(data) // 2 :]
        elif data:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        found = restored(workdir)
        step = found.proof.step
        assert_is(found, step)
        said = capfd.readouterr().err
        assert (step == 1) == (f"{workdir}/checkpoints/2 is damaged" in said)
        assert (step == 1) == ("step 1 is taken instead" in said)
        taken.append(step)
    assert 1 in taken and len(taken) > 10


def test_a_flipped_number_is_no_error_of_any_file_and_is_seen(workdir, monkeypatch):
    """What Orbax hands over is held to the proof, whoever reads it, and two flips do not make up for each other."""
    whole = ocp.PyTreeCheckpointHandler.restore

    def flipped(self, folder, args):
        found = whole(self, folder, args=args)
        if folder.parent.name == "2":
            head = found["params"]["policy"]["head"]
            found["params"]["policy"]["head"] = head.at[3, :2].multiply(-1)
        return found

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", flipped)
    params = load_params(workdir, {"policy": state(0)["params"]["policy"]})
    np.testing.assert_array_equal(params["policy"]["head"], state(1)["params"]["policy"]["head"])
    assert_is(restored(workdir), 1)


@pytest.mark.parametrize("damage", ["empty folder", "no arrays", "no proof"])
def test_a_half_written_newest_checkpoint_is_passed_by_and_its_step_saved_again(workdir, damage, capfd):
    newest = workdir / "checkpoints" / "2"
    for part in {"empty folder": newest.iterdir(), "no arrays": [newest / "state"], "no proof": [newest / "proof"]}[
        damage
    ]:
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    assert_is(restored(workdir), 1)
    assert capfd.readouterr().err.count("\n") == 1
    assert (workdir / "checkpoints" / "damaged-2").is_dir()
    save(workdir, 2)
    assert_is(restored(workdir), 2)
    assert load_proof(workdir)[:3] == (2, IDENTITY, FACTS)


def test_what_one_of_several_processes_cannot_read_none_takes(tmp_path, monkeypatch):
    """The agreement alone, with an other process that is made up: it sees step 7 too, and reads nothing of it."""
    for step in (3, 5):
        (tmp_path / str(step)).mkdir()
    other = {"steps": [7, 5], "failed": False}

    def gather(own):
        if own.dtype == bool:
            return np.stack([own, np.array(other["failed"])])
        theirs = np.full_like(own, -1)
        theirs[: len(other["steps"])] = other["steps"]
        return np.stack([own, theirs])

    def fails():
        raise OSError("cut\nshort")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(checkpoint.multihost_utils, "process_allgather", gather)
    assert checkpoint._steps(tmp_path) == [7, 5, 3] and checkpoint._steps(tmp_path / "absent") == [7, 5]
    assert checkpoint._whole(lambda: "read", "unreadable") == "read"
    with pytest.raises(DamagedCheckpointError, match="^unreadable: cut$"):
        checkpoint._whole(fails, "unreadable")
    other["failed"] = True
    with pytest.raises(DamagedCheckpointError, match="^another process cannot read it$"):
        checkpoint._whole(lambda: "read", "unreadable")


def test_another_identity_is_refused_and_other_facts_are_not(workdir):
    checkpointer = open_run(workdir, identity={"config": {"seed": 1, "loss": {}}}, facts={"steps": 10})
    with pytest.raises(ValueError, match=r"run holds a run with another config \(config.loss: None there, \{\} now; "):
        checkpointer.restore(state(0))
    assert_is(open_run(workdir, facts={"steps": 10}).restore(state(0)), 2)


def test_empty_newer_folders_do_not_push_out_the_last_sound_checkpoint(workdir):
    for step in (3, 4, 5):
        (workdir / "checkpoints" / str(step)).mkdir()
    checkpointer = open_run(workdir, keep=1)
    assert_is(checkpointer.restore(state(0)), 2)
    checkpointer.save(3, state(3), {"position": 30})
    checkpointer.close()
    assert_is(restored(workdir), 3)


def test_where_none_is_sound_the_run_does_not_start_anew_by_itself(workdir):
    for step in (1, 2):
        shutil.rmtree(workdir / "checkpoints" / str(step) / "state")
    with pytest.raises(
        DamagedCheckpointError, match="checkpoints/2 is damaged.*checkpoints/1 is damaged.*to start anew"
    ):
        restored(workdir)
    with pytest.raises(DamagedCheckpointError, match="No other is there"):
        load_params(workdir, {"policy": state(0)["params"]["policy"]})


def test_a_state_that_is_not_finite_is_not_saved(workdir):
    checkpointer = open_run(workdir, keep=1)
    broken = state(3)
    broken["params"]["policy"]["scale"] = broken["params"]["policy"]["scale"].at[:2].set(jnp.array([jnp.nan, jnp.inf]))
    with pytest.raises(NonFiniteStateError, match="step 3: params/policy/scale holds 2 .*newest checkpoint is step 2"):
        checkpointer.save(3, broken, {})
    checkpointer.close()
    assert_is(restored(workdir), 2)


def test_parameters_of_another_model_are_no_damage(workdir):
    other = {"policy": {"head": jnp.zeros((8, 17)), "scale": jnp.zeros(16)}}
    with pytest.raises(
        ValueError, match=r"params/policy/head is float32 \[8, 16\] there, not float32 \[8, 17\]"
    ) as raised:
        load_params(workdir, other)
    assert not isinstance(raised.value, DamagedCheckpointError)
    with pytest.raises(ValueError, match="params/policy/tail is absent"):
        load_params(workdir, {"policy": {"tail": jnp.zeros(3)}})


def test_parameters_are_read_in_the_dtype_and_place_that_is_asked_for(workdir):
    place = NamedSharding(Mesh(np.array(jax.devices()), ("all",)), P("all"))
    like = {"policy": {"head": jax.ShapeDtypeStruct((8, 16), jnp.bfloat16, sharding=place)}}
    head = load_params(workdir, like)["policy"]["head"]
    assert head.sharding == place
    np.testing.assert_array_equal(head, state(2)["params"]["policy"]["head"].astype(jnp.bfloat16))


def test_fingerprints_are_those_of_the_devices_and_of_any_mesh(monkeypatch):
    rng = np.random.default_rng(0)
    dtypes = ("float32", "bfloat16", "float64", "int32", "int8", "bool")
    with jax.enable_x64(True):
        arrays = {
            name: jnp.array(
                rng.normal(size=(8, 3, 2)) > 0.3 if name == "bool" else rng.normal(size=(8, 3, 2)) * 50
            ).astype(name)
            for name in dtypes
        }
        arrays |= {"scalar": jnp.int32(7), "nothing": jnp.zeros((0, 4))}
        expected = fingerprints(arrays)
        monkeypatch.setattr(fingerprints_lib, "_SMALL", -1)
        assert fingerprints(arrays) == expected
        place = NamedSharding(Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y")), P("x", None, "y"))
        spread = {name: jax.device_put(arrays[name], place) for name in dtypes}
        assert fingerprints(spread) == {name: expected[name] for name in dtypes}
    assert len({found.text for found in expected.values()}) == len(expected)
