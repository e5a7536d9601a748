"""Configuration of the tests: float64, two CPU devices, a compilation cache, checks of shapes and of random keys."""

import gc
import os
import sys
from pathlib import Path

import jax
import jaxtyping
import pytest

# Tests start Python anew many times; without bytecode each would compile all modules again, for some seconds.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# The workers share the cores already: a program compiled in one piece takes less of them.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_parallel_codegen_split_count=1"

jaxtyping.install_import_hook("bayespot", "beartype.beartype")  # before anything imports the package

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_disable_most_optimizations", True)  # most programs run once: they take half the time to compile
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

collect_ignore = ["benchmarks"]  # programs, which set JAX up as they need it


# Of these tests of contracts one member each takes seconds to compile: it runs with the slow tests.
SLOW_MEMBERS = (
    *(
        f"test_translation_changes_nothing_and_rotation_turns_the_forces[{n}]"
        for n in ("dimenet-crystal", "dimenet-molecule", "bonded-crystal")
    ),
    "test_small_cell_equals_its_supercell[dimenet-repeat0]",
    "test_vmap_over_parameters_equals_a_loop[dimenet]",
    "test_float32_agrees_with_float64[dimenet]",
    "test_float32_agrees_with_float64[bonded]",
    "test_spec_rebuilds_the_potential[dimenet]",
    "test_padding_changes_nothing[dimenet]",
    "test_smooth_where_a_neighbour_crosses_the_cutoff[dimenet]",
    *(f"test_energy_and_forces_alone_are_those_with_the_stress[{n}]" for n in ("dimenet", "descriptor_mlp", "bonded")),
    "test_samples_and_replicas_are_treated_run_by_run[adf]",
    "test_relaxation_of_the_cell_finds_the_crystal",
    "test_full_batch_references_sample_the_cold_posterior[nuts]",
    "test_what_cannot_be_counted_is_refused[wrong2-must have the shape]",
    *(f"test_batched_chains_equal_sequential_ones[{n}]" for n in ("sgnht", "sggmc", "amagold", "replica exchange")),
)


@pytest.hookimpl(tryfirst=True)  # before the option -m selects by the marks
def pytest_collection_modifyitems(items):
    """Marks the slow members; the files with the longest tests come first, so that no worker ends alone with them."""
    if len(items) > 1500:  # the whole suite
        assert set(SLOW_MEMBERS) <= {item.name for item in items}, "SLOW_MEMBERS names tests that do not exist"
    long = ("test_cli.py", "test_readme.py", "test_ensembles.py")
    items.sort(key=lambda item: item.path.name not in long)
    for item in items:
        if item.name in SLOW_MEMBERS:
            item.add_marker("slow")


def pytest_collection_finish():
    """The collector of garbage need not look through all modules again and again: a twelfth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)


@pytest.fixture(scope="module")
def optimised():
    """All of the compiler's optimisations, for files whose runs take longer than their compilation."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets, from ``BAYESPOT_DATA``; without it the test is skipped."""
    folder = os.environ.get("BAYESPOT_DATA")
    if not folder:
        pytest.skip("real data are needed: set BAYESPOT_DATA to their folder")
    return Path(folder)


@pytest.fixture
def key():
    return jax.random.key(0)
