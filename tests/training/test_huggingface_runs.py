"""Training from a Hugging Face folder, and back to one: the wiring around `prefjax.models.huggingface`."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from prefjax.data.config import DataConfig
from prefjax.data.encoding import EncodingPolicy
from prefjax.data.records import Message
from prefjax.data.tokenizer_files import write_tokenizer
from prefjax.data.tokenizers import PLAIN, ByteTokenizer, load_tokenizer
from prefjax.data.world_records import WorldOptions
from prefjax.models import ModelConfig, init
from prefjax.models.huggingface import load_huggingface, read_config, save_huggingface
from prefjax.policies.export import export_policy
from prefjax.policies.open import open_policy
from prefjax.training.config import ReferenceConfig, RowsConfig, StageConfig
from prefjax.training.loop import LoopConfig
from prefjax.training.mesh import MeshConfig, make_mesh
from prefjax.training.optimizers import OptimizerConfig
from prefjax.training.parameters import read_policy
from prefjax.training.runs import origin, run_config
from prefjax.training.stage import run_stage

pytestmark = pytest.mark.slow

SMALL = ModelConfig(
    vocab_size=264, num_layers=1, width=32, num_heads=4, num_kv_heads=2, head_width=8, mlp_width=48, qk_norm="head"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Qwen 3 with a byte tokenizer and a generation config, as if downloaded."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    settings = dict(eos_token_id=258, max_position_embeddings=4096)
    save_huggingface(folder, SMALL, init(SMALL, jax.random.key(5)), settings=settings)
    write_tokenizer(folder, "byte")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 258, "temperature": 0.6}))
    return folder


def stage(folder, **changes):
    base = StageConfig(
        objective="dpo",
        loss={"beta": 0.5},
        data=DataConfig(tokenizer=str(folder), world=WorldOptions(train_examples=48, eval_examples=8)),
        rows=RowsConfig(tokens_per_step=1024, row_length=128, window=32),
        model=read_config(folder),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        train=LoopConfig(steps=2, log_every=1),
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
        init_from=str(folder),
    )
    return dataclasses.replace(base, **changes)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, run_stage(stage(folder), workdir, workdir / "data")


def test_training_starts_from_the_folder_and_is_exported_bit_for_bit(folder, trained, tmp_path):
    workdir, result = trained
    before = load_huggingface(folder)[1]
    for a, b in zip(leaves(result.reference), leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)
    export_policy(open_policy(workdir, config=stage(folder)), tmp_path / "out", shard_bytes=40_000)
    config, after = load_huggingface(tmp_path / "out")
    assert config == read_config(folder)
    for a, b, c in zip(leaves(result.policy), leaves(after), leaves(before), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(b, c)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    old, new = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "out"))
    assert new == old
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [258], "temperature": 0.6}
    assert load_tokenizer(tmp_path / "out").fingerprint == load_tokenizer(folder).fingerprint


def test_a_model_made_here_is_exported_with_its_tokenizer_and_limits(folder, tmp_path):
    data = DataConfig(encoding=EncodingPolicy(max_length=500))
    seeded = stage(folder, init_from="", data=data, model=dataclasses.replace(SMALL, vocab_size=0))
    export_policy(open_policy("", config=seeded), tmp_path / "out", dtype="bfloat16")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    ids = {name: written[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
    assert ids == {"bos": 257, "eos": [258], "pad": 256} and written["vocab_size"] == 259
    assert written["max_position_embeddings"] == 500
    after = load_huggingface(tmp_path / "out")[1]
    fresh = init(dataclasses.replace(SMALL, vocab_size=259), jax.random.key(seeded.seed))
    for a, b in zip(leaves(fresh), leaves(after), strict=True):
        np.testing.assert_array_equal(a.astype("bfloat16").astype("float32"), b)


def test_a_reference_may_be_a_folder_of_the_same_architecture_only(folder, trained, tmp_path):
    mesh = make_mesh(MeshConfig())
    workdir, result = trained
    config = stage(folder, reference=ReferenceConfig(init_from=str(folder)))
    reference = read_policy(config.reference.init_from, config.model, mesh, seed=config.seed)
    for a, b in zip(leaves(reference), leaves(result.reference), strict=True):
        np.testing.assert_array_equal(a, b)
    other = dataclasses.replace(SMALL, mlp_width=40)
    save_huggingface(tmp_path / "other", other, init(other, jax.random.key(0)))
    with pytest.raises(ValueError, match="model.mlp_width=48, not 40"):
        read_policy(str(tmp_path / "other"), config.model, mesh, seed=config.seed)


def test_a_run_takes_architecture_and_tokenizer_from_the_folder(folder, tmp_path):
    from configs import quickstart

    def configured(**changes):
        config = quickstart.get_config("dpo").copy_and_resolve_references()
        config.unlock()
        del config.sft
        config.model = dict(dtype="bfloat16", remat="full")
        config.init_from, config.data.tokenizer = str(folder), ""
        config.update(changes)
        return config.to_dict()

    run = run_config(configured())
    assert run.stage.model == dataclasses.replace(SMALL, dtype="bfloat16", remat="full", norm_epsilon=1e-5)
    assert run.stage.data.tokenizer == str(folder)
    assert run_config(configured(data=dict(tokenizer="byte"))).stage.data.tokenizer == "byte"
    assert run_config(configured(model=dict(width=32, vocab_size=0))).stage.model.vocab_size == 264
    with pytest.raises(ValueError, match="config.model.width=64, not 32"):
        run_config(configured(model=dict(width=64)))
    with pytest.raises(ValueError, match="config.model.widht is not an option"):
        run_config(configured(model=dict(widht=64)))
    # A run that began from the folder passes it on to the run after it, and through its SFT stage.
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps({"init_from": "", "sft": {"init_from": str(folder)}}))
    assert origin(str(workdir)) == str(folder)
    assert run_config(configured(init_from=str(workdir))).stage.model.width == 32
    sft = configured(init_from="", sft=dict(init_from=str(folder)))
    assert run_config(sft).find("sft").model.width == run_config(sft).stage.model.width == 32
    assert origin("") is None and origin(str(tmp_path)) is None


def test_the_byte_tokenizer_in_files_is_the_one_built_in(folder):
    read, built = load_tokenizer(folder), ByteTokenizer()
    ids = (read.bos_id, read.eos_id, read.pad_id, read.vocab_size, read.special_ids)
    assert ids == (built.bos_id, built.eos_id, built.pad_id, built.vocab_size, built.special_ids)
    text = "".join(map(chr, range(1, 0x250))) + " two  spaces\n\n\tйцукен 漢字 🙂 'll don't "
    assert read.encode(text) == built.encode(text)
    assert read.encode(text, continues=True) == built.encode(text)
    assert read.decode(built.encode(text)) == text
    for turns in ([Message("user", "Hi")], [Message("system", "s"), Message("user", "Hi"), Message("assistant", "Ho")]):
        for generate in (False, True):
            assert read.render(turns, generate=generate) == built.render(turns, generate=generate)


def test_the_template_of_the_run_goes_with_the_model(folder, tmp_path):
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    (tmp_path / "a").mkdir()
    write_tokenizer(tmp_path / "a", folder, template)
    turns = [Message("user", "Hi")]
    assert load_tokenizer(tmp_path / "a").render(turns, generate=False) == "[user]Hi"
    (tmp_path / "b").mkdir()
    write_tokenizer(tmp_path / "b", tmp_path / "a", PLAIN)
    assert load_tokenizer(tmp_path / "b").render(turns, generate=True) == "user: Hi\n\nassistant:"


def test_stories260k_trains_on_pairs(real_models, tmp_path):
    folder = real_models / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no stories260k in {real_models}")
    world = WorldOptions(train_examples=32, eval_examples=8)  # few enough to see each pair several times
    config = stage(
        folder,
        loss={"beta": 0.1},
        data=DataConfig(tokenizer=str(folder), chat_template=PLAIN, world=world),
        train=LoopConfig(steps=8, log_every=1),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        mesh=MeshConfig(),
    )
    run_stage(config, tmp_path, tmp_path / "data")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-3) and np.mean(losses[-3:]) < 0.5
