"""Elastic constants: exact averages at T → 0 and at finite temperature, the ideal gas, and independent simulations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from bayespot import units
from bayespot.observables.elasticity import elastic_constants
from bayespot.observables.observable import observe
from bayespot.potentials.classical import lennard_jones, stillinger_weber
from bayespot.potentials.potential import Potential, energy_forces_stress, strained
from bayespot.records.neighbors import displacements, neighbors
from bayespot.records.posterior import as_samples
from bayespot.records.system import System, from_ase
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.simulation.ensemble import nvt_langevin
from bayespot.simulation.simulate import propagate
from bayespot.tree import replace, stack

SILICON = stillinger_weber(14)
PUBLISHED = SILICON.init(jax.random.key(0))
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def run_of(sys: System, position) -> Trajectory:
    """Frames that differ in their positions only."""
    t = len(position)
    system = System(np.asarray(position), np.tile(sys.species, (t, 1)), np.tile(sys.box, (t, 1, 1)))
    frames = Frame(system, np.zeros(system.position.shape), np.zeros(t), np.zeros((t, 3, 3)))
    return Trajectory(frames, np.arange(t) * 1.0, np.array(0), np.array(float(t)))


def value(observable, run):
    return np.asarray(observe(observable, run, blocks=1).value[0, 0])


def wurtzite() -> System:
    """Hexagonal silicon whose stress vanishes, in its skewed cell of four atoms."""
    a, c, u = 3.8402614, 6.2711206, 0.375
    return from_ase(
        Atoms(
            "Si4", cell=[a, a, c, 90, 90, 120], pbc=True,
            scaled_positions=[[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, u], [2 / 3, 1 / 3, 0.5 + u]],
        )
    )  # fmt: skip


def harmonic_crystal(sys: System):
    """A function for energy, forces and stress of silicon, and the Hessian by central differences of the forces."""
    nbrs, evaluate = neighbors(sys, SILICON.cutoff + 0.3), jax.jit(energy_forces_stress(SILICON))
    h, n = 1e-4, sys.position.size

    def at(x, strain=np.zeros((3, 3))):
        return evaluate(PUBLISHED, strained(replace(sys, position=x.reshape(-1, 3)), jnp.asarray(strain)), nbrs)

    x = np.asarray(sys.position).ravel()
    hessian = [(at(x - h * e)[1] - at(x + h * e)[1]).ravel() / (2 * h) for e in np.eye(n)]
    return at, 0.5 * (np.array(hessian) + np.array(hessian).T)


def gaussian_frames(sys: System, hessian, kT: float):
    """2 × (3N − 3) positions whose covariance is exactly kT times the inverse Hessian, as the observable counts it."""
    eigenvalue, mode = np.linalg.eigh(hessian)
    eigenvalue, mode = eigenvalue[3:], mode[:, 3:]
    assert eigenvalue[0] > 0.1
    number = 2 * len(eigenvalue)
    away = mode * np.sqrt(0.5 * (number - 1) * kT / eigenvalue)
    return np.asarray(sys.position) + np.concatenate([away.T, -away.T]).reshape(number, -1, 3)


def test_silicon_at_zero_temperature():
    """Cowley, Phys. Rev. Lett. 60, 2379 (1988): 151.4, 76.4, 56.4 GPa, of which the fluctuations make −53.3 of C44."""
    sys, kT = from_ase(bulk("Si", a=5.43095)), 1e-8
    _, hessian = harmonic_crystal(sys)
    run = run_of(sys, gaussian_frames(sys, hessian, kT))
    got = value(elastic_constants(SILICON, kT, params=PUBLISHED), run)
    np.testing.assert_allclose(got, [151.42, 76.42, 56.45], rtol=0, atol=0.01)


@pytest.mark.slow
def test_hexagonal_silicon_at_zero_temperature_is_the_slope_of_the_relaxed_stress():
    """In a skewed cell, where strains that multiply the lattice from the wrong side give another C44."""
    sys, kT = wurtzite(), 1e-8
    at, hessian = harmonic_crystal(sys)
    assert np.abs(at(sys.position)[2] / units.GPa).max() < 1e-3
    inverse = np.linalg.pinv(hessian, rcond=1e-6)

    def relaxed_stress(strain):
        x = np.asarray(sys.position).ravel()
        for _ in range(6):
            x = x + inverse @ np.asarray(at(x, strain)[1]).ravel()
        return np.array([at(x, strain)[2][v] for v in VOIGT]) / units.GPa

    slope = []
    for a, b in VOIGT:
        strain = np.zeros((3, 3))
        strain[a, b] = 1e-4  # the symmetric part counts: of a shear half, which is an angle of 1e-4
        slope.append((relaxed_stress(strain) - relaxed_stress(-strain)) / 2e-4)
    run = run_of(sys, gaussian_frames(sys, hessian, kT))
    got = value(elastic_constants(SILICON, kT, "none", PUBLISHED), run).reshape(6, 6)
    np.testing.assert_allclose(got, np.array(slope).T, rtol=0, atol=0.02)
    assert got[5, 5] == pytest.approx((got[0, 0] - got[0, 1]) / 2, abs=0.01)


def soft(strength: float = 1.0) -> Potential:
    """Pairs that repel as exp(−r²), so that no configuration is improbable."""

    def init(key):
        return {"strength": jnp.asarray(strength)}

    def energies(params, sys, nbrs):
        vectors, mask = displacements(sys, nbrs)
        square = (vectors**2).sum(-1)
        smooth = jnp.where(square < 9.0, jnp.exp(-square) * (1 - square / 9.0) ** 3, 0.0)
        return params["strength"] * jnp.where(mask, smooth, 0.0).sum(1)

    return Potential(init, energies, 3.0, (), {"name": "soft", "strength": strength})


@pytest.mark.slow
def test_slope_of_the_canonical_mean_stress_in_a_skewed_box_under_load():
    """On fixed scaled coordinates the mean stress is a finite sum, and its derivative by the strain this observable.

    Weights exp(−U/kT) of random configurations: exact for any of them, under any stress, including the kinetic part.
    Only the division of the covariance by 1 − Σw² has to be undone.
    """
    kT, potential, box = 0.2, soft(), np.array([[3.6, 0.3, 0.0], [-0.5, 3.2, 0.4], [0.2, 0.1, 4.0]])
    scaled = np.random.default_rng(0).uniform(size=(30, 5, 3))
    sys, params = System(scaled[0] @ box, np.full(5, 18, np.int32), box), {"strength": jnp.array(1.0)}
    lists = stack([neighbors(replace(sys, position=s @ box), 3.3, capacity=40) for s in scaled])
    volume, all_three = np.linalg.det(box), energy_forces_stress(potential)

    @jax.jit
    def weights_and_mean_stress(strain):
        def one(s, nbrs):
            energy, _, stress = all_three(params, strained(replace(sys, position=s @ box), strain), nbrs)
            return energy, jnp.stack([stress[v] for v in VOIGT])

        energy, stress = jax.vmap(one)(jnp.asarray(scaled), lists)
        weight = jax.nn.softmax(-energy / kT)
        gas = 5 * kT / (volume * jnp.linalg.det(jnp.eye(3) + 0.5 * (strain + strain.T)))
        return weight, (weight @ stress - gas * jnp.array([1.0, 1, 1, 0, 0, 0])) / units.GPa

    slope = np.zeros((6, 6))
    for number, (a, b) in enumerate(VOIGT):
        strain = np.zeros((3, 3))
        strain[a, b] = 1e-4
        slope[:, number] = (weights_and_mean_stress(strain)[1] - weights_and_mean_stress(-strain)[1]) / 2e-4
    weight = np.asarray(weights_and_mean_stress(np.zeros((3, 3)))[0])
    observable = elastic_constants(potential, kT, "none", params)
    observable = observable.prepare(jax.tree.map(lambda x: x[None, None], run := run_of(sys, scaled @ box)))
    values = jax.jit(jax.vmap(observable.frame))(run.frames)
    got = np.asarray(observable.combine(values, weight)).reshape(6, 6)
    without = (np.asarray(weight @ values[:, :36]).reshape(6, 6)) / units.GPa
    without[:3, :3] += 5 * kT / volume / units.GPa
    fluctuations = (got - without) * (1 - weight @ weight)
    assert np.abs(fluctuations).max() > 1.0
    assert np.abs(slope - slope.T).max() > 0.1  # not a pressure: Hooke's matrix is not symmetric
    np.testing.assert_allclose(without + fluctuations, slope, rtol=1e-6, atol=1e-5)


def test_an_ideal_gas_resists_compression_only():
    """Bulk modulus p = N kT/V, no resistance to shear."""
    nothing = Potential(lambda key: {}, lambda params, sys, nbrs: 0.0 * sys.position[:, 0], 1.0, (), {})
    sys = System(np.zeros((7, 3)), np.full(7, 18, np.int32), np.diag([4.0, 5.0, 6.0]))
    positions = np.random.default_rng(0).uniform(0, 4, (3, 7, 3))
    p = 7 * 0.03 / 120 / units.GPa
    got = value(elastic_constants(nothing, 0.03, params={}), run_of(sys, positions))
    np.testing.assert_allclose(got, [p, p, 0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("symmetry", "expected"),
    [
        ("cubic", [(11 + 22 + 33) / 3, (12 + 13 + 23 + 21 + 31 + 32) / 6, (44 + 55 + 66) / 3]),
        ("hexagonal", [(11 + 22) / 2, (12 + 21) / 2, (13 + 23 + 31 + 32) / 4, 33, (44 + 55) / 2]),
    ],
)
def test_equivalent_components_are_averaged(symmetry, expected):
    matrix = np.add.outer(10.0 * np.arange(1, 7), np.arange(1, 7))  # the component ab is the number ab
    values = np.tile(np.concatenate([matrix.ravel() * units.GPa, np.zeros(6), [0, 1]]), (2, 1))
    observable = elastic_constants(soft(), 0.1, symmetry)
    np.testing.assert_allclose(observable.combine(jnp.asarray(values), np.full(2, 0.5)), expected, rtol=1e-12)
    assert len(observable.coordinate) == len(expected)


@pytest.mark.slow
def test_every_sample_has_its_own_parameters():
    """Two equal frames do not fluctuate: what remains beside the ideal gas is proportional to the strength."""
    potential, kT = soft(), 0.2
    sys = System(np.zeros((3, 3)), np.full(3, 18, np.int32), 3.7 * np.eye(3))
    positions = np.random.default_rng(1).uniform(0, 3.7, (3, 3))
    runs = jax.tree.map(lambda x: np.stack([x[None]] * 3), run_of(sys, [positions] * 2))
    strength = jnp.array([0.3, 0.7, 0.0])
    samples = as_samples({"strength": strength}, potential.spec)
    observable = elastic_constants(potential, kT)
    got = observe(observable, runs, samples=samples, blocks=1).value[:, 0]
    p = 3 * kT / 3.7**3 / units.GPa
    np.testing.assert_allclose(got[2], [p, p, 0], rtol=1e-12, atol=1e-14)
    assert np.abs(got[0] - got[2]).min() > 1e-3
    np.testing.assert_allclose((got[1] - got[2]) / 0.7, (got[0] - got[2]) / 0.3, rtol=1e-12)
    with pytest.raises(ValueError, match="pass the `samples`"):
        observe(observable, runs, blocks=1)
    other = as_samples({"strength": strength}, soft(0.5).spec)
    with pytest.raises(ValueError, match="must belong to the potential"):
        observe(observable, runs, samples=other, blocks=1)
    with pytest.raises(ValueError, match="use observe, or call prepare"):
        observable.frame(jax.tree.map(lambda x: x[0, 0, 0], runs.frames))


def test_what_has_no_constant_box_is_refused():
    sys = System(np.zeros((1, 3)), np.full(1, 18, np.int32), 4.0 * np.eye(3))
    run = run_of(sys, np.zeros((2, 1, 3)))
    observable = elastic_constants(soft(), 0.1, params={"strength": 0.3})
    for box, message in [(np.diag([4.0, 4.0, 0.0]), "periodic in all three"), (4.1 * np.eye(3), r"change by 0\.1 Å")]:
        changed = np.stack([sys.box, box])
        frames = replace(run.frames, system=replace(run.frames.system, box=changed))
        with pytest.raises(ValueError, match=message):
            observe(observable, replace(run, frames=frames), blocks=1)


@pytest.mark.parametrize("wrong", [{"kT": 0.0}, {"symmetry": "trigonal"}])
def test_arguments_are_checked(wrong):
    with pytest.raises(ValueError, match="kT > 0"):
        elastic_constants(soft(), **({"kT": 0.1} | wrong))


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_argon_under_tension_against_the_stress_of_strained_boxes():
    """Simulations at ±1.5 % of strain, 11 and 23 at once: an independent route, at 40 K and a pressure of −100 MPa.

    Eight runs each: together standard errors of some 0.05, 0.04 and 0.015 GPa; third order in the strain, 0.5 %.
    Second derivatives of the free energy by Lagrangian strain differ by the pressure, 0.1 GPa: six of them for C44.
    """
    potential, kT, size = lennard_jones(sigma=3.4, epsilon=0.0104, cutoff=5.0), 40 * units.kB, 0.015
    start, ensemble = from_ase(bulk("Ar", cubic=True, a=5.38) * (2, 2, 2)), nvt_langevin(kT, 10 * units.fs, 0.1)
    samples = as_samples(jax.tree.map(lambda x: x[None], potential.init(jax.random.key(0))), potential.spec)
    shape = np.array([[1.0, 0, 0], [0, 0, 0.5], [0, 0.5, 0]])

    def runs(strain, seed):
        return propagate(
            jax.random.key(seed), potential, samples, strained(start, jnp.asarray(strain)), ensemble, steps=5000,
            every=20, equilibration=500, replicas=8, batch_size=1, chunk=5000, skin=0.8, progress=False,
        )  # fmt: skip

    stress = [runs(sign * size * shape, seed).frames.stress[0].mean(1) for sign, seed in ((1, 1), (-1, 2))]
    volumes = [np.linalg.det(start.box @ (np.eye(3) + sign * size * shape)) for sign in (1, -1)]
    total = [s - 32 * kT / v * np.eye(3) for s, v in zip(stress, volumes, strict=True)]
    slope = (total[0] - total[1]) / (2 * size) / units.GPa
    slopes = np.stack([slope[:, 0, 0], 0.5 * (slope[:, 1, 1] + slope[:, 2, 2]), slope[:, 1, 2]], 1)
    constants = np.asarray(
        observe(elastic_constants(potential, kT), runs(0 * shape, 3), samples=samples, blocks=1).value[0]
    )
    error = np.sqrt((slopes.var(0, ddof=1) + constants.var(0, ddof=1)) / 8)
    assert (error < [0.07, 0.06, 0.02]).all()
    assert (np.abs(slopes.mean(0) - constants.mean(0)) < 4 * error + 0.005 * constants.mean(0)).all()
