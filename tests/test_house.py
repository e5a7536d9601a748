"""The rules of the house that a program can check."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import bayespot

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "bayespot").rglob("*.py"))
EVERY_FILE = [*PACKAGE, *sorted((ROOT / "tests").rglob("*.py"))]
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 400, 60


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), path)


def place(path: Path, node: ast.AST | None = None) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def nodes(paths, *kinds):
    return [(path, node) for path in paths for node in ast.walk(parsed(path)) if isinstance(node, kinds)]


def test_files_are_short():
    lengths = {place(path): len(path.read_text().splitlines()) for path in EVERY_FILE}
    assert len(lengths) > 50
    assert {p: n for p, n in lengths.items() if n > LINES_OF_A_FILE} == {}


def test_functions_are_short():
    """All lines count: signature, docstring, comments and inner functions."""
    lengths = {
        f"{place(path, node)} {node.name}": node.end_lineno - node.lineno + 1
        for path, node in nodes(EVERY_FILE, ast.FunctionDef, ast.AsyncFunctionDef)
    }
    assert len(lengths) > 500
    assert {f: n for f, n in lengths.items() if n > LINES_OF_A_FUNCTION} == {}


def test_no_assert_no_print_nothing_left_to_do():
    wrong = [place(path, node) for path, node in nodes(PACKAGE, ast.Assert)]
    for path, node in nodes([p for p in PACKAGE if p.name != "cli.py"], ast.Name):
        wrong += [place(path, node)] if node.id in ("print", "NotImplementedError", "NotImplemented") else []
    wrong += [place(path) for path in PACKAGE if "TODO" in path.read_text() or "FIXME" in path.read_text()]
    assert wrong == []


def test_no_pickle_and_no_archived_library():
    wrong = []
    for path, node in nodes(EVERY_FILE, ast.Import, ast.ImportFrom, ast.keyword):
        if isinstance(node, ast.keyword):
            found = {"pickle"} if node.arg == "allow_pickle" and not is_false(node.value) else set()
        elif isinstance(node, ast.Import):
            found = {alias.name.split(".")[0] for alias in node.names}
        else:
            found = {(node.module or "").split(".")[0]}
        if found & {"pickle", "cloudpickle", "dill", "joblib", "jraph"}:
            wrong.append(place(path, node))
    assert wrong == []


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.parametrize("name", bayespot.__all__)
def test_public_names_resolve_and_are_explained(name):
    value = getattr(bayespot, name)
    assert value.__doc__
    assert not value.__doc__.startswith(f"{value.__name__}(")  # what Python writes where nobody wrote anything
    home = importlib.import_module(f"bayespot.{bayespot._HOME[name]}") if name in bayespot._HOME else bayespot
    assert getattr(home, name) is value


def test_a_wrong_name_is_refused():
    with pytest.raises(AttributeError, match="no name 'trainer'"):
        _ = bayespot.trainer


HEAVY = {"jax_md", "ase", "vesin", "matplotlib", "orbax", "arviz_base", "xarray", "numpyro", "flax", "optax"}


def imported_by(code: str) -> tuple[set[str], int]:
    """Libraries that a new Python has loaded after ``code``, and the number of devices that it can still ask for."""
    rest = """
import json, sys
import jax
loaded = sorted({name.split(".")[0] for name in sys.modules})
jax.config.update("jax_num_cpu_devices", 3)  # an error if a backend has been initialised
print(json.dumps([loaded, jax.device_count()]))
"""
    run = subprocess.run([sys.executable, "-c", code + rest], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded, devices = json.loads(run.stdout.splitlines()[-1])
    return set(loaded), devices


def test_import_is_light():
    loaded, devices = imported_by("import bayespot")
    assert loaded & HEAVY == set()
    assert devices == 3


def test_no_public_name_starts_a_backend():
    """Whoever looks at a name may still choose devices and precision."""
    loaded, devices = imported_by("import bayespot\nfor name in bayespot.__all__: getattr(bayespot, name)")
    assert loaded & {"jax_md", "ase", "vesin", "orbax", "arviz_base"} == set()
    assert devices == 3


@pytest.mark.slow
def test_of_jax_md_only_the_integrators_are_loaded():
    """The package takes seconds to import; whoever wants it still gets the whole, and one that is loaded is used."""
    code = """
import sys
from bayespot.simulation.ensemble import _integrators
simulate = _integrators()
assert simulate is _integrators()
assert not [name for name in sys.modules if name.split(".")[0] in ("jax_md", "e3nn_jax", "sympy")]
import jax_md
assert jax_md.energy and jax_md.simulate.nve.__code__ == simulate.nve.__code__
_integrators.cache_clear()
assert simulate is not _integrators() is jax_md.simulate
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_lock_file_is_not_kept():
    assert "uv.lock" in (ROOT / ".gitignore").read_text().split()
