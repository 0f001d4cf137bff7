"""The Pallas kernels, emulated on CPU, against the dense oracle; lowered and compiled for chips that are not here."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from prefjax.models import attention, decoder
from prefjax.models.attention import kernel_tiles, kernels
from prefjax.rows.layout import lay_out_forest
from prefjax.training.mesh import MeshConfig, make_mesh
from tests.models.test_attention import random_row
from tests.rows.forests import merged_mask

PLATFORMS = kernel_tiles.PLATFORMS
CUSTOM_CALL = {"tpu": "tpu_custom_call", "cuda": "__gpu$xla.gpu.triton"}


def long_trunk(length):
    """(visible_until, positions) of one tree that fills its row, mostly trunk: tiles that hide nothing."""
    trunk, first, reply = int(0.85 * length), int(0.05 * length), int(0.04 * length)
    lengths = np.array([trunk, first, reply, length - trunk - first - reply])
    forest = lay_out_forest(lengths, np.array([-1, 0, 1, 0]))
    return forest.visible_until, forest.positions


def inputs(length, heads, kv_heads, width=16, dtype=jnp.float32):
    """(query, key, value, upstream, visible_until, positions): a row of deep random trees, one tree, a padding row."""
    rng = np.random.default_rng(length)
    alone = (np.arange(length, dtype=np.int32) + 1, np.zeros(length, np.int32))
    masks = zip(random_row(rng, length)[:2], long_trunk(length), alone, strict=True)
    visible_until, positions = (jnp.array(np.stack(x), jnp.int32) for x in masks)
    draw = lambda n: jnp.array(rng.normal(size=(3, length, n, width)), dtype)
    return draw(heads), draw(kv_heads), draw(kv_heads), draw(heads).astype(jnp.float32), visible_until, positions


def run(arrays, implementation, *, mesh=None, softcap=None, window=None, interpret=None):
    """(output, gradients) of one attention, in float32."""
    q, k, v, upstream, visible_until, positions = arrays
    window = None if window is None else jnp.int32(window)

    def loss(q, k, v):
        options = dict(implementation=implementation, mesh=mesh, interpret=interpret)
        mask = attention.prepare(visible_until, positions, **options)
        output = attention.attend(q, k, v, mask, scale=0.3, softcap=softcap, window=window)
        return (output * upstream).sum(), output

    gradients, output = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x, np.float32) for x in (output, *gradients)]


def assert_equal_to_dense(arrays, implementation="pallas", *, mesh=None, interpret=None, **options):
    found = run(arrays, implementation, mesh=mesh, interpret=interpret, **options)
    for got, exact in zip(found, run(arrays, "dense", **options), strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(
    "length,heads,kv_heads,width,softcap,window",
    [
        pytest.param(300, 6, 2, 16, None, None, marks=pytest.mark.slow),
        pytest.param(301, 3, 1, 80, 2.0, None, marks=pytest.mark.slow),
        pytest.param(383, 4, 2, 64, None, 9, marks=pytest.mark.slow),
        (128, 2, 2, 128, 2.0, 9),
    ],
)
def test_kernels_equal_the_dense_oracle(platform, length, heads, kv_heads, width, softcap, window):
    arrays = inputs(length, heads, kv_heads, width)
    assert_equal_to_dense(arrays, interpret=platform, softcap=softcap, window=window)


@pytest.mark.slow
@pytest.mark.parametrize("query,key", [(256, 128), (128, 256)])
def test_heads_spread_over_several_tiles_equal_dense(monkeypatch, query, key):
    """More heads share a key head than a tile has rows for, and its two sides differ."""
    monkeypatch.setitem(kernel_tiles.BLOCKS, "tpu", kernel_tiles.Blocks(query, key, rows=2 * query, memory=2**24))
    assert_equal_to_dense([x[:2] for x in inputs(512, 4, 1)], interpret="tpu")


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
def test_bfloat16_kernels_are_no_worse_than_bfloat16_dense(platform):
    arrays = inputs(300, 4, 2, dtype=jnp.bfloat16)
    exact = run([x.astype(jnp.float32) for x in arrays[:3]] + list(arrays[3:]), "dense")
    error = lambda found: [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, exact, strict=True)]
    kernel, dense = error(run(arrays, "pallas", interpret=platform)), error(run(arrays, "dense"))
    assert all(k <= 1.5 * d for k, d in zip(kernel, dense, strict=True)), (kernel, dense)


@pytest.mark.slow
@pytest.mark.parametrize("interpret", [None, *PLATFORMS])
def test_sharded_kernels_equal_dense(interpret):
    """Rows over fsdp, heads over tensor; without emulation, `auto` on CPU: the tiles behind the same gate."""
    # The TPU emulator waits for all devices at once and starves with more of them than this.
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    arrays = [jnp.concatenate([x, x[:1]]) for x in inputs(260, 4, 2)]
    assert_equal_to_dense(arrays, "pallas" if interpret else "auto", mesh=mesh, interpret=interpret, window=50)


def brute_force_tiles(visible_until, positions, found):
    """{outer block: {inner block: (hides nothing, distance)}} of live tiles by query and by key, from the full mask."""
    rows, length = visible_until.shape
    padded = len(found.positions) // rows
    mask = np.zeros((rows, padded, padded), bool)
    mask[:, :length, :length] = attention.visible(jnp.array(visible_until))
    pad = np.arange(length, padded)
    mask[:, pad, pad] = True
    positions = np.pad(positions, ((0, 0), (0, padded - length)))
    query, key = found.blocks.query, found.blocks.key
    by_query, by_key = {}, {}
    for row in range(rows):
        for i, j in np.ndindex(padded // query, padded // key):
            tile = mask[row, i * query : (i + 1) * query, j * key : (j + 1) * key]
            if tile.any():
                far = positions[row, i * query : (i + 1) * query].min() - positions[row, j * key : (j + 1) * key].max()
                q, k = row * (padded // query) + i, row * (padded // key) + j
                by_query.setdefault(q, {})[k] = (tile.all(), far)
                by_key.setdefault(k, {})[q] = (tile.all(), far)
    return by_query, by_key


@pytest.mark.parametrize("platform,length", [("tpu", 127), ("tpu", 512), ("cuda", 100), ("cuda", 256)])
def test_lists_hold_exactly_the_live_tiles(monkeypatch, platform, length):
    if length == 512:
        monkeypatch.setitem(kernel_tiles.BLOCKS, "tpu", kernel_tiles.Blocks(query=128, key=256, rows=512))
    merged = zip(*(merged_mask(length, seed) for seed in range(3)), strict=True)
    pairs = zip(inputs(length, 1, 1)[4:], merged, strict=True)
    visible_until, positions = (np.concatenate([x, np.stack(more)]) for x, more in pairs)
    listed = kernel_tiles.list_tiles(jnp.array(visible_until), jnp.array(positions), platform=platform, kind=platform)
    dense = brute_force_tiles(visible_until, positions, listed)
    for tiles, expected in zip((listed.by_query, listed.by_key), dense, strict=True):
        outer, inner, distance = (np.asarray(x) for x in (tiles.outer, tiles.inner, tiles.distance))
        bounds = np.asarray(tiles.bounds).reshape(-1, 3)
        assert len(bounds) == len(expected)
        assert bounds[0, 0] == 0 and (bounds[1:, 0] == bounds[:-1, 2]).all()
        for block, (begin, masked, end) in enumerate(bounds):
            found = {inner[n]: (n < masked, distance[n]) for n in range(begin, end)}
            assert (outer[begin:end] == block).all() and len(found) == end - begin
            assert found == expected[block]
    assert length < 128 or bounds[-1, 2] < len(outer), "a mask without a dead tile does not test skipping"
    assert length < 128 or (bounds[:, 1] > bounds[:, 0]).any(), "a mask that hides a pair in every tile"


def test_blocks_follow_the_chip_the_row_and_the_heads():
    choose = kernel_tiles.choose_blocks
    assert choose("tpu", "TPU v5 lite", 1, 4096) == kernel_tiles.BLOCKS["TPU v5 lite"]
    assert choose("tpu", "TPU v5", 1, 4096) == kernel_tiles.BLOCKS["TPU v5"]
    assert choose("cuda", "NVIDIA H100 80GB HBM3", 1, 4096) == kernel_tiles.BLOCKS["NVIDIA H100"]
    assert choose("cuda", "cuda", 1, 4096) == kernel_tiles.BLOCKS["cuda"]
    odd = choose("tpu", "TPU v5", 1, 640)
    assert (odd.query, odd.key) == (128, 128), "larger tiles would pad 640 positions by more than an eighth"
    assert choose("tpu", "TPU v5", 1, 2**18).query == 1024, "a list of smaller tiles would outgrow scalar memory"
    assert [kernel_tiles.Blocks(query=256, key=512, rows=1024).heads(n) for n in (1, 3, 4, 7, 8)] == [1, 3, 4, 1, 4]


@pytest.mark.slow
def test_dead_tiles_are_not_visited():
    """Work follows the mask: a NaN in a dead tile would reach every query that multiplied it by a weight of 0."""
    q, k, v, upstream, _, _ = [x[:1] for x in inputs(384, 2, 1)]
    visible_until = jnp.where(jnp.arange(384) < 128, 128, 384)[None].astype(jnp.int32)
    positions = jnp.arange(384, dtype=jnp.int32)[None]
    v = v.at[:, :128].set(jnp.nan)
    for platform in PLATFORMS:
        output = run((q, k, v, upstream, visible_until, positions), "pallas", interpret=platform)[0]
        assert np.isnan(output[:, :128]).all() and not np.isnan(output[:, 128:]).any()


def test_refusals():
    visible_until, positions = inputs(300, 1, 1)[4:]
    with pytest.raises(ValueError, match="'pallas' has kernels for .* not for 'cpu'"):
        attention.prepare(visible_until, positions, implementation="pallas")
    with pytest.raises(ValueError, match="interpret='tpu': .* only with attention='pallas'"):
        attention.prepare(visible_until, positions, implementation="tiled", interpret="tpu")
    with pytest.raises(ValueError, match="interpret='cpu'"):
        attention.prepare(visible_until, positions, implementation="pallas", interpret="cpu")
    for arrays in (inputs(300, 1, 1, dtype=jnp.float16), inputs(300, 1, 1, width=257)):
        with pytest.raises(ValueError, match="'pallas' has no tpu kernel for float.* heads .* wide"):
            run(arrays, "pallas", interpret="tpu")


def test_heads_without_a_kernel_take_tiles():
    """float64 (and heads too wide) keep the XLA loop under `auto`, on every platform."""
    arrays = inputs(300, 2, 1, width=272)
    assert not kernels.supports(arrays[0], "tpu")
    assert_equal_to_dense(arrays, "auto")


def gradient_program(*, length, width, windowed, mesh=None):
    """A jitted gradient of `auto` attention in bfloat16, with the shapes of its arguments on the first of the mesh."""

    def loss(q, k, v, visible_until, positions, window):
        mask = attention.prepare(visible_until, positions, mesh=mesh)
        far = window if windowed else None
        return attention.attend(q, k, v, mask, scale=0.3, softcap=2.0, window=far).astype(jnp.float32).sum()

    heads = lambda n: ((2, length, n, width), jnp.bfloat16)
    row = ((2, length), jnp.int32)
    place = None if mesh is None else NamedSharding(mesh, P())
    arguments = (heads(4), heads(2), heads(2), row, row, ((), jnp.int32))
    shapes = [jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape, dtype in arguments]
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2))), shapes


@pytest.mark.parametrize("platform", ["cpu", *PLATFORMS])
def test_auto_lowers_to_the_kernels_of_each_platform(platform):
    """One program, lowered on this CPU for another platform: three kernels there, none of the other's."""
    program, shapes = gradient_program(length=512, width=64, windowed=True)
    allow = [export.DisabledSafetyCheck.custom_call(CUSTOM_CALL["cuda"])]
    text = export.export(program, platforms=[platform], disabled_checks=allow)(*shapes).mlir_module()
    for name, call in CUSTOM_CALL.items():
        assert text.count(f"@{call}(") == (3 if name == platform else 0), name
    # On CUDA a cumulative sum may be exported as a loop too, but not over arrays of heads.
    loops = [line for line in text.splitlines() if "stablehlo.while" in line and "x512x64x" in line]
    assert bool(loops) == (platform == "cpu"), "the tile loop belongs to platforms without kernels"


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 2, 2)])
def test_a_sharded_program_lowers_to_the_kernels_of_cards_that_are_not_here(sizes):
    """The mesh's devices are CPUs; which card the kernels are lowered for is said where they are."""
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    program, shapes = gradient_program(length=512, width=64, windowed=True, mesh=mesh)
    allow = [export.DisabledSafetyCheck.custom_call(CUSTOM_CALL["cuda"])]
    text = export.export(program, platforms=["cuda"], disabled_checks=allow)(*shapes).mlir_module()
    assert text.count(f"@{CUSTOM_CALL['cuda']}(") == 3


@pytest.mark.slow
def test_triton_is_needed_by_programs_for_nvidia_alone():
    """It is deprecated and will leave JAX. Without it, `auto` runs long rows on CPU and is lowered for TPU."""
    code = """
import sys
hidden = ("jax.experimental.pallas.triton", "jax._src.pallas.triton")
sys.modules |= dict.fromkeys(hidden)
import jax, jax.numpy as jnp
from jax import export
from prefjax.models import attention
from prefjax.models.attention import dispatch, fused, kernels

def loss(heads, visible_until):
    mask = attention.prepare(visible_until, visible_until, implementation="auto")
    assert mask.kernel_tiles.keys() == {"tpu", "cuda"}
    return attention.attend(heads, heads, heads, mask, scale=0.3).sum()

program = jax.jit(jax.grad(loss))
arguments = jnp.ones((1, 384, 2, 64)), jnp.full((1, 384), 384)
assert program(*arguments).shape == (1, 384, 2, 64)
text = export.export(program, platforms=["tpu"])(*arguments).mlir_module()
assert text.count("@tpu_custom_call(") == 3
try:
    export.export(program, platforms=["cuda"])(*arguments)
except ImportError as error:
    assert "triton" in str(error)
else:
    raise AssertionError("the module was not hidden")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])


# What the CUDA compiler asks of a card it cannot see (xla.GpuTargetConfigProto), here an H100 SXM.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 28 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
# Slices of four chips.
CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "H100": "1x4x1"}


def absent_mesh(chip, **axes):
    """A mesh of chips that are not here; skips without their compiler."""
    package = "jax_cuda12_plugin" if chip == "H100" else "libtpu"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} compiles for {chip} and is not installed: pip install -r requirements-aot.txt")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")  # other processes may be compiling too
    if chip == "H100":
        devices = topologies.get_topology_desc(platform="cuda", target_config=H100, topology=CHIPS[chip]).devices
    else:
        devices = topologies.get_topology_desc(CHIPS[chip], platform="tpu").devices
    config = MeshConfig(data=1, **axes)
    return make_mesh(config, devices[: config.fsdp * config.tensor])


def kernels_in(compiled) -> int:
    """Calls of the attention kernels in a compiled program."""
    calls = [line for line in compiled.as_text().splitlines() if "custom-call(" in line or "__triton" in line]
    return sum("prefix_attention" in line for line in calls)


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("length,width,windowed", [(2048, 64, False), (2048, 128, False), (1500, 256, True)])
def test_kernels_compile_for_chips_that_are_not_here(chip, length, width, windowed):
    program, shapes = gradient_program(length=length, width=width, windowed=windowed, mesh=absent_mesh(chip))
    assert kernels_in(program.lower(*shapes).compile()) == 3


@pytest.mark.slow
def test_rows_longer_than_on_chip_memory_compile():
    """131072 keys and values of one head, 67 MB, against 128 MiB that must hold each twice and more besides."""
    program, shapes = gradient_program(length=2**17, width=128, windowed=False, mesh=absent_mesh("v5e"))
    assert kernels_in(program.lower(*shapes).compile()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e", "H100"])
def test_a_decoder_compiles_with_the_kernels_over_a_slice(chip):
    mesh = absent_mesh(chip, fsdp=2, tensor=2)
    config = decoder.ModelConfig(
        vocab_size=512,
        num_layers=2,
        width=256,
        num_heads=4,
        num_kv_heads=2,
        head_width=64,
        mlp_width=512,
        dtype="bfloat16",
        remat="full",
    )
    loss = lambda params, *rows: decoder.apply(config, params, *rows, mesh=mesh).astype(jnp.float32).sum()
    on = lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
    params = jax.tree.map(lambda x: on(x, P()), jax.eval_shape(lambda: decoder.init(config, jax.random.key(0))))
    row = on(jax.ShapeDtypeStruct((4, 1024), jnp.int32), P("fsdp"))
    compiled = jax.jit(jax.grad(loss)).lower(params, row, row, row).compile()
    assert kernels_in(compiled) == 4, "forward, forward again, and the gradients of queries and of keys"
