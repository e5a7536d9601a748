"""The ten lines of the README run as written, but for their sizes."""

import ast
import inspect
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

import bayespot as bp

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"
SMALLER = {
    "chains=4": "chains=2",
    "data, steps=2_000)": "data, steps=80, batch_size=2, progress=False)",
    "steps=2_000, burn_in=1_000, thin=250": "steps=6, burn_in=4, thin=1, batch_size=2, progress=False",
    "steps=10_000, equilibration=2_000": "steps=40, every=10, progress=False",
    "bp.cosine(8e-3, 2_000)": "bp.cosine(8e-3, 80)",
    "1_000)": "3)",
}


@pytest.fixture
def lines() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    return block


@pytest.fixture
def silicon_file(tmp_path, monkeypatch):
    """Eight frames of Stillinger–Weber silicon, under the name that the README uses."""
    teacher, frames = bp.stillinger_weber(14), []
    params = teacher.init(jax.random.key(0))
    for seed in range(8):
        atoms = bulk("Si", cubic=True)
        atoms.rattle(0.08, seed=seed)
        one = bp.label(teacher, params, [bp.from_ase(atoms)], 5.0)
        atoms.calc = SinglePointCalculator(atoms, energy=float(one.energy[0]), forces=np.asarray(one.forces[0]))
        frames.append(atoms)
    write(tmp_path / "silicon.extxyz", frames)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("silicon_file")
def test_ten_lines(lines, capsys):
    for long, short in SMALLER.items():
        assert long in lines, f"the README no longer says {long!r}"
        lines = lines.replace(long, short)
    names: dict = {}
    with pytest.warns(bp.UncertaintyWarning, match=r"too short for g\(r\)"):  # 40 steps are
        exec(compile(lines, README.name, "exec"), names)

    assert len(names["samples"]) == 4
    assert names["runs"].frames.energy.shape == (4, 1, 4)
    interval = names["rdf"]
    g = np.asarray(interval.mean)
    assert g.shape == interval.coordinate.shape
    # In a crystal of 64 atoms that has made 40 steps of 1 fs nothing is nearer than 1.5 Å, and the first neighbours,
    # four per atom, still lie within 3 Å: their number follows from the curve and the density.
    r, width = np.asarray(interval.coordinate), interval.coordinate[1] - interval.coordinate[0]
    assert np.all(g[r < 1.5] == 0)
    density = 8 / 5.43**3
    assert float((4 * np.pi * r**2 * g * width)[r < 3.0].sum() * density) == pytest.approx(4, rel=0.05)
    assert (np.asarray(interval.lower) <= g + 1e-6).all()
    assert "g(r)" in capsys.readouterr().out


def test_ten_lines_are_about_ten(lines):
    statements = [line for line in lines.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(statements) <= 14


def test_set_up_commands():
    text = README.read_text()
    assert "python3 -m pip install uv && python3 -m uv run bayespot quickstart\n" in text
    assert "python3 -m pip install uv && python3 -m uv run pytest\n" in text


PAGES = [README, README.parent / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page} links to {target}, which does not exist"


@pytest.mark.parametrize("page", sorted((DOCS / "how-to").glob("*.md")), ids=lambda page: page.stem)
def test_pages_use_names_and_arguments_that_exist(page):
    """To run them takes minutes or data."""
    blocks = [ast.parse(block) for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
    assert blocks
    nodes = [node for block in blocks for node in ast.walk(block)]
    assert {n.attr for n in nodes if ours(n)} <= {*bp.__all__, "units"}
    for call in (n for n in nodes if isinstance(n, ast.Call) and ours(n.func)):
        if not any(isinstance(a, ast.Starred) for a in call.args):
            inspect.signature(getattr(bp, call.func.attr)).bind(*call.args, **{k.arg: None for k in call.keywords})


def test_observables_of_the_table_exist():
    rows = re.findall(r"^\|(.*?)\|", (DOCS / "how-to/measure_observables.md").read_text(), re.MULTILINE)
    names = set(re.findall(r"`(\w+)`", "".join(rows)))
    assert len(names) > 20
    assert names <= set(bp.__all__)


def ours(node) -> bool:
    """``bp.name``."""
    return isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "bp"
