"""RDF and ADF against ideal gas, perfect crystals, ASE and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

from bayespot.observables.observable import observe
from bayespot.observables.pairs import translations
from bayespot.observables.structure import adf, rdf, shell_averages
from bayespot.records.system import System, from_ase
from bayespot.records.trajectory import Frame, Trajectory


def run_of(systems) -> Trajectory:
    """The systems as frames of one run, in the memory of the host."""
    system = jax.tree.map(lambda *x: np.stack(x), *systems)
    t, n = system.species.shape
    frames = Frame(system, np.zeros((t, n, 3)), np.zeros(t), np.zeros((t, 3, 3)))
    return Trajectory(frames, np.arange(t) * 1.0, np.array(0), np.array(float(t)))


def value(observable, systems):
    return np.asarray(observe(observable, run_of(systems), blocks=1).value[0, 0])


@pytest.mark.slow
def test_rdf_of_an_ideal_gas_is_one_minus_one_over_n():
    rng = np.random.default_rng(0)
    n, frames, edge = 20, 2000, 10.0
    species = jnp.asarray([1] * 5 + [2] * 15, jnp.int32)
    systems = [System(rng.uniform(0, edge, (n, 3)), np.asarray(species), edge * np.eye(3)) for _ in range(frames)]
    # Expected number of pairs per bin is large; the count is Poisson-like: relative error 1/sqrt(count); 4.5 sigma of
    # 3 × 5 bins has a chance of 1e-4 to fail, and the seed is fixed.
    for pair, expected, pairs in [(None, 1 - 1 / n, n * (n - 1) / 2), ((1, 1), 1 - 1 / 5, 10), ((1, 2), 1.0, 75)]:
        got = value(rdf(5.0, 5, pair), systems)
        shells = 4 / 3 * np.pi * np.diff(np.linspace(0, 5.0, 6) ** 3)
        counts = frames * pairs * shells / edge**3
        assert (np.abs(got / expected - 1) < 4.5 / np.sqrt(counts)).all()


@pytest.mark.parametrize(("structure", "edge", "shells"), [
    ("diamond", 5.43, {2.351: 4, 3.840: 12, 4.502: 12, 5.43: 6, 5.917: 12}),
    ("fcc", 4.05, {2.864: 12, 4.05: 6, 4.960: 24, 5.728: 12}),
])  # fmt: skip
@pytest.mark.parametrize("copies", [1, 2])
def test_rdf_of_a_crystal_counts_neighbours_even_in_a_cell_smaller_than_r_max(structure, edge, shells, copies):
    atoms = bulk("Si" if structure == "diamond" else "Al", structure, a=edge).repeat(copies)  # skewed primitive cell
    bins, r_max = 300, 6.0
    g = value(rdf(r_max, bins), [from_ase(atoms)])
    density = len(atoms) / atoms.get_volume()
    edges = np.linspace(0, r_max, bins + 1)
    counts = density * g * 4 / 3 * np.pi * np.diff(edges**3)
    for r, number in shells.items():
        near = (edges[1:] > r - 0.05) & (edges[:-1] < r + 0.05)
        np.testing.assert_allclose(counts[near].sum(), number, rtol=1e-9)
    np.testing.assert_allclose(counts.sum(), sum(shells.values()), rtol=1e-9)


def test_rdf_agrees_with_neighbours_counted_by_ase():
    from ase.neighborlist import neighbor_list

    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.set_cell(atoms.cell.array @ np.array([[1, 0.2, 0], [0, 1.1, -0.3], [0, 0, 0.9]]), scale_atoms=True)
    atoms.rattle(0.3, seed=1)
    bins, r_max = 70, 7.0
    edges = np.linspace(0, r_max, bins + 1)
    i, j, d = neighbor_list("ijd", atoms, r_max)
    for a, b in [(None, None), (11, 17), (17, 11), (17, 17)]:
        chosen = np.ones(len(i), bool) if a is None else (atoms.numbers[i] == a) & (atoms.numbers[j] == b)
        na, nb = (len(atoms) if z is None else (atoms.numbers == z).sum() for z in (a, b))
        counts = np.histogram(d[chosen], edges)[0]
        expected = counts * atoms.get_volume() / (na * nb * 4 / 3 * np.pi * np.diff(edges**3))
        got = value(rdf(r_max, bins, None if a is None else (a, b)), [from_ase(atoms)])
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


def test_adf_agrees_with_angles_counted_by_ase():
    from ase.neighborlist import neighbor_list

    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.rattle(0.3, seed=2)
    cutoff, bins = 4.6, 30
    i, j, v = neighbor_list("ijD", atoms, cutoff)
    for triplet in [None, (11, 17, 11), (17, 17, 11)]:
        angles = []
        for centre in range(len(atoms)):
            around = np.flatnonzero(i == centre)
            for x in range(len(around)):
                for y in range(x):
                    p, q = around[x], around[y]
                    ends = sorted((atoms.numbers[j[p]], atoms.numbers[j[q]]))
                    if triplet is None or (atoms.numbers[centre] == triplet[1] and ends == sorted(triplet[::2])):
                        cosine = v[p] @ v[q] / np.linalg.norm(v[p]) / np.linalg.norm(v[q])
                        angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        expected, _ = np.histogram(angles, np.linspace(0, 180, bins + 1), density=True)
        got = value(adf(cutoff, bins, triplet), [from_ase(atoms)])
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("copies", [1, 2])
def test_adf_of_diamond_is_the_tetrahedral_angle(copies):
    bins = 180
    p = value(adf(2.8, bins), [from_ase(bulk("Si", "diamond", a=5.43).repeat(copies))])
    assert p[109] == pytest.approx(1.0, rel=1e-12)  # 109.47 degrees lies in the bin from 109 to 110
    assert p.sum() == pytest.approx(1.0, rel=1e-12)


def test_adf_of_a_molecule_in_an_open_box_and_its_normalisation():
    angle = np.radians(104.5)
    water = np.array([[0, 0, 0], [0.96, 0, 0], [0.96 * np.cos(angle), 0.96 * np.sin(angle), 0]])
    single = System(jnp.asarray(water), jnp.asarray([8, 1, 1], jnp.int32), jnp.zeros((3, 3)))
    p = value(adf(1.2, 90), [single])
    assert p.sum() * 2.0 == pytest.approx(1.0, rel=1e-12)
    assert p[52] == pytest.approx(0.5, rel=1e-12)  # 104 to 106 degrees


def test_a_straight_angle_falls_into_the_last_bin():
    line = System(jnp.asarray([[-1.0, 0, 0], [0, 0, 0], [1.0, 0, 0]]), jnp.full(3, 6, jnp.int32), jnp.zeros((3, 3)))
    assert value(adf(1.5, 36), [line])[-1] == pytest.approx(1 / 5, rel=1e-12)


def test_translations_are_those_that_can_reach_and_no_more():
    cube = 10.0 * np.eye(3)
    assert translations(cube, 4.99) == ((0, 0, 0),)
    assert len(translations(cube, 6.0)) == 7  # faces only: edges begin at 7.07, corners at 8.66
    assert len(translations(cube, 7.5)) == 19
    assert len(translations(cube, 9.0)) == 27


def test_without_preparation_bins_beyond_half_the_box_are_nan_not_wrong():
    atoms = bulk("Si", "diamond", a=5.43, cubic=True)
    frame = jax.tree.map(lambda x: x[0], run_of([from_ase(atoms)]).frames)
    observable = rdf(6.0, 60)
    bare, prepared = np.asarray(jax.jit(observable.frame)(frame)), value(observable, [from_ase(atoms)])
    inside = np.linspace(0, 6.0, 61)[1:] <= 5.43 / 2
    np.testing.assert_allclose(bare[inside], prepared[inside], rtol=1e-12)
    assert np.isnan(bare[~inside]).all()
    assert np.isnan(np.asarray(jax.jit(adf(2.8).frame)(frame))).all()
    assert np.isfinite(np.asarray(jax.jit(adf(2.5).frame)(frame))).all()


def test_a_failed_run_does_not_decide_the_sizes():
    good = run_of([from_ase(bulk("Si", "diamond", a=5.43).repeat(2))])
    bad = jax.tree.map(lambda x: x, good)
    collapsed = bad.frames.system.position * jnp.nan
    bad.frames.system.__dict__["position"] = collapsed
    both = jax.tree.map(lambda *x: jnp.stack(x)[:, None], good, bad)
    both.__dict__["status"] = jnp.array([[0], [2]])
    got = observe(adf(2.8, 18), both, blocks=1).value
    assert np.isfinite(np.asarray(got[0])).all()


@pytest.mark.parametrize("make", [lambda: rdf(0.0), lambda: rdf(5.0, 0), lambda: adf(-1.0), lambda: adf(3.0, 0)])
def test_arguments_are_checked(make):
    with pytest.raises(ValueError, match="needs"):
        make()


def test_an_open_box_and_an_absent_species_are_refused():
    molecule = System(jnp.zeros((2, 3)).at[1, 0].set(1.0), jnp.array([6, 8], jnp.int32), jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match="periodic in all three"):
        observe(rdf(3.0), run_of([molecule]), blocks=1)
    with pytest.raises(ValueError, match=r"species \[14\]"):
        observe(adf(3.0, triplet=(6, 14, 8)), run_of([molecule]), blocks=1)


def test_shell_averages_are_the_integrals_over_the_shells():
    r = np.linspace(0.0, 3.1, 63)  # bins of 0.3 end between the points
    observable = rdf(3.0, bins=10)
    edges = np.linspace(0, 3, 11)
    exact = 0.75 * np.diff(edges**4) / np.diff(edges**3)  # of g = r
    np.testing.assert_allclose(shell_averages(r, r, observable), exact, rtol=1e-12)
    np.testing.assert_allclose(shell_averages(r, np.ones(63), observable), 1.0, rtol=1e-12)


def test_shell_averages_of_a_measured_curve_count_its_neighbours():
    r = np.linspace(0.05, 4.0, 80)
    g = np.exp(-((r - 2.0) ** 2) / 0.02)
    bins = shell_averages(r, g, rdf(4.0, bins=5))
    fine = np.linspace(0, 4, 400_001)
    number = np.trapezoid(np.interp(fine, r, g) * fine**2, fine)
    assert (bins * np.diff(np.linspace(0, 4, 6) ** 3) / 3).sum() == pytest.approx(number, rel=1e-8)


def test_shell_averages_refuse_other_observables_and_short_curves():
    r = np.linspace(0, 3, 7)
    with pytest.raises(ValueError, match="made by rdf"):
        shell_averages(r, r, adf(2.0))
    with pytest.raises(ValueError, match="reach 4 Å"):
        shell_averages(r, r, rdf(4.0))
    with pytest.raises(ValueError, match="must increase"):
        shell_averages(r[::-1], r, rdf(2.0))
    with pytest.raises(ValueError, match="Need finite"):
        shell_averages(r, np.where(r > 2, np.nan, r), rdf(2.0))
