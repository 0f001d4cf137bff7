"""Recipes of papers' own size: they load, have published models' sizes, step as shapes; their page is true."""

import dataclasses

import jax
import pytest

from configs import papers
from docs import write_cluster
from experiments.benchmarks.lengths import distributions, draw_trees
from experiments.config_flag import complete
from experiments.tables.harness import NOT_RUN
from prefjax.data.encoding import EncodingPolicy
from prefjax.fit.ahead import abstract_frozen, abstract_rows, abstract_state
from prefjax.fit.compiled_plan import first_batches
from prefjax.losses import OBJECTIVES
from prefjax.models import ModelConfig, decoder
from prefjax.rows.store import MemoryTrees
from prefjax.training.batches import training_shape, with_baselines
from prefjax.training.mesh import make_mesh
from prefjax.training.parameters import tokenizer_of
from prefjax.training.runs import run_config
from prefjax.training.stage import make_setup
from prefjax.training.step import jit_train_step

PARAMETERS = {  # as published
    "llama3_1b": 1_235_814_400,
    "llama3_3b": 3_212_749_824,
    "llama3_8b": 8_030_261_248,
    "mistral_7b": 7_241_732_096,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
}


def stage_of(name):
    config = complete(papers.get_config(f"{name},shape"), "configs/papers.py").to_dict()
    return run_config(config).stage


def trees_of(name, count):
    lengths = distributions()[papers.RECIPES[name].lengths]
    return MemoryTrees(draw_trees(lengths, count, EncodingPolicy(), vocab_size=100))


@pytest.mark.parametrize("shape", papers.SHAPES)
def test_shapes_have_the_parameters_of_published_models(shape):
    shapes = decoder.shapes(ModelConfig(**papers.SHAPES[shape]))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[shape]


@pytest.mark.parametrize("name", papers.RECIPES)
def test_every_recipe_loads_and_its_rows_hold_its_lengths(name):
    stage = stage_of(name)
    reads_reference = OBJECTIVES[stage.objective].requires.reference
    assert (stage.reference.kind != "none") == reads_reference and stage.model.dtype == "bfloat16"
    bare = papers.get_config(name)
    assert set(bare.model) == {"dtype", "remat"}, "a run has the architecture of its checkpoint"
    assert complete(bare, "configs/papers.py").objective == stage.objective
    length = dataclasses.replace(stage.train, steps=min(stage.train.steps, 10))  # rows are counted step by step
    shape = training_shape(dataclasses.replace(stage, train=length), with_baselines(stage, trees_of(name, 16)))
    assert shape.rows and shape.row_length <= 8192


@pytest.mark.parametrize("name", ["rdpo_hh"])
def test_the_step_of_a_recipe_as_shapes(name):
    """Adapters, a loss of pairs, a base that is the reference; nothing is made. Any other recipe goes in here too."""
    stage = stage_of(name)
    mesh = make_mesh(dataclasses.replace(stage.mesh, fsdp=1), jax.devices()[:1])
    setup = make_setup(stage, tokenizer_of(stage.data, stage.model), mesh)
    state, frozen = abstract_state(setup, stage.optimizer), abstract_frozen(setup)
    rows = abstract_rows(setup, training_shape(stage, trees_of(name, 16)))
    after, metrics = jit_train_step(setup, state.replace(frozen=frozen)).eval_shape(state.changing(), frozen, rows)
    shapes = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    assert shapes(after.params) == shapes(state.params) and "loss" in metrics.ratios


def test_an_epoch_of_few_trees_can_be_planned():
    """It has fewer steps than a plan measures, which then takes what there is."""
    stage, trees = stage_of("prefix_hh"), trees_of("prefix_hh", 300)
    shape = training_shape(stage, trees)
    assert len(first_batches(stage, trees, shape, row_multiple=8)) == 1 < 64 / shape.rows


def test_an_unknown_recipe_is_refused_with_those_there_are():
    for argument in ("prefix_heh", "prefix_hh,shap"):
        with pytest.raises(ValueError, match="choose one of dpo_hh, .*`,shape` or nothing"):
            papers.get_config(argument)


def test_every_recipe_is_named_in_the_file_and_on_the_page():
    assert write_cluster.PAGE.read_text() == write_cluster.render(), "run python -m docs.write_cluster"
    assert set(write_cluster.FACTS) == set(papers.RECIPES)
    assert all(name in papers.__doc__.split() or f"{name}." in papers.__doc__ for name in papers.RECIPES)
    page = write_cluster.PAGE.read_text()
    for name, known in write_cluster.FACTS.items():
        assert known["needs"] and known["settings"] and write_cluster.command(name) in page
        assert f"| [{name}](#{name}) |" in page
    assert page.count(f"| {NOT_RUN} |") == len(papers.RECIPES)


def test_plans_are_those_of_their_recipes():
    for plan in write_cluster.read(write_cluster.PLANS):
        (name,) = [name for name in papers.RECIPES if f"papers.py:{name},shape" in plan.command]
        assert plan.settings["objective"] == papers.RECIPES[name].config["objective"]
        assert plan.lengths.startswith(str(distributions()[papers.RECIPES[name].lengths]))
