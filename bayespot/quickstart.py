"""The whole road on one example: data, two posteriors, simulations, credible intervals, figures.

Without files, a *teacher* makes the data: Stillinger–Weber silicon, whose observables are known, so that the intervals
can be checked against the truth. With files, held-out errors and calibration take the place of the truth.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bayespot as bp
from bayespot import units
from bayespot.typing import Key


class Settings(NamedTuple):
    """Sizes of the quickstart; energies in eV, lengths in Å, times in ps, temperatures in K."""

    cutoff: float = 4.2  # the teacher sees 3.77 Å
    channels: int = 8
    hidden: tuple[int, ...] = (64, 64)
    cells: int = 2
    teacher_temperatures: tuple[float, ...] = (300.0, 1200.0)
    frames: int = 14  # at each temperature
    spacing: int = 100
    energy_noise: float = 0.005
    force_noise: float = 0.25
    stress_noise: float = 0.00125
    members: int = 8
    ensemble_steps: int = 1200
    batch: int = 4
    chains: int = 8
    draws: int = 8  # of more chains rather than longer ones: between networks they do not mix
    burn_in: int = 600
    thin: int = 60
    simulated: int = 4  # every fourth draw of a chain is simulated; the others serve R-hat and ESS of predictions
    temperature: float = 600.0
    time_step: float = 0.004  # kinetic energies come out some 2 % low, for the teacher and its pupils alike
    run: float = 40.0
    equilibration: float = 1.0
    runs: int = 16
    every: int = 16
    skin: float = 0.6  # hot atoms leave a thinner one every few steps
    friction: float = 50.0  # [1/ps]; near the frequencies of the vibrations a crystal forgets soonest
    truth: float = 240.0
    truth_runs: int = 2
    first_step: float = 3e-5
    last_step: float = 8e-6  # larger ones make the spread along stiff directions, the stress, far too wide

    @property
    def frames_kept(self) -> int:
        """Frames written per run."""
        return round(self.run / self.time_step / self.every)


FULL = Settings()
FAST = Settings(  # the teacher's runs are shaped like those of the samples: what was compiled serves again
    spacing=50, members=4, ensemble_steps=200, chains=2, draws=8, burn_in=80, thin=8,
    run=0.96, equilibration=0.4, runs=8, every=8, truth=7.68, truth_runs=8,
)  # fmt: skip
# Frames from files: more and more diverse than the teacher's, with precise labels, and perhaps of a liquid.
_FILES = {"cutoff": 5.0, "friction": 10.0, "every": 20, "first_step": 1e-5, "last_step": 3e-6}
FILES, FAST_FILES = FULL._replace(ensemble_steps=4000, **_FILES), FAST._replace(**_FILES)


class Material(NamedTuple):
    """What the road starts from: training, validation and test frames, a configuration to start from, the teacher.

    None of the teacher's few frames are set aside for early stopping; files give enough.
    """

    train: bp.Dataset
    validation: bp.Dataset | None  # for early stopping
    test: bp.Dataset
    start: bp.System  # a hot one: the neighbour lists of a perfect crystal would soon be too short
    teacher: bp.Potential | None


def silicon(cells: int) -> bp.System:
    """Perfect diamond-cubic silicon, so many cubic cells of 8 atoms along each edge."""
    from ase.build import bulk

    return bp.from_ase(bulk("Si", "diamond", a=5.431, cubic=True) * (cells, cells, cells))


def langevin(s: Settings, kelvin: float) -> bp.Ensemble:
    """The thermostat of all simulations."""
    return bp.nvt_langevin(kT=kelvin * units.kB, dt=s.time_step * units.ps, gamma=s.friction / units.ps)


def teacher_material(key: Key, s: Settings, progress: bool) -> Material:
    """Frames of Stillinger–Weber silicon at two temperatures; all labels carry Gaussian noise of known size."""
    teacher, crystal = bp.stillinger_weber(14), silicon(s.cells)
    params = teacher.init(key)
    systems = []
    for n, kelvin in enumerate(s.teacher_temperatures):
        run = bp.simulate(
            jax.random.fold_in(key, n), teacher, params, crystal, langevin(s, kelvin),
            steps=s.frames * s.spacing, every=s.spacing, equilibration=10 * s.spacing, progress=progress,
        )  # fmt: skip
        systems += [jax.tree.map(lambda x, t=t: jnp.asarray(x[t]), run.frames.system) for t in range(s.frames)]
    exact = bp.label(teacher, params, systems, s.cutoff)
    noise = {"energy": s.energy_noise, "forces": s.force_noise, "stress": s.stress_noise}
    data = bp.add_noise(jax.random.fold_in(key, 101), exact, **noise)
    train, test = bp.split(jax.random.fold_in(key, 100), data, (0.6, 0.4))
    return Material(train, None, test, start=systems[-1], teacher=teacher)


def file_material(key: Key, s: Settings, data: str | Path, test: str | Path | None) -> Material:
    """Frames of files; without a test file, every seventh frame is set aside. Simulations start from a real frame."""
    known = bp.read(data, cutoff=s.cutoff)
    if test is None:
        known, held_out = bp.split_by_group(key, known, (6 / 7, 1 / 7))
    else:
        held_out = bp.read(test, cutoff=s.cutoff)
    train, validation = bp.split_by_group(jax.random.fold_in(key, 1), known, (0.9, 0.1))
    counts = train.atom_counts
    common = counts == np.bincount(counts).argmax()
    quiet = np.where(common, np.asarray(train.energy) / counts, np.inf).argmin()
    start = jax.tree.map(lambda x: x[quiet], train.system)
    if not float(bp.volume(start.box)) > 0:
        raise bp.DataError(data, int(train.frame[quiet]), "the quickstart simulates bulk; it needs a periodic box")
    return Material(train, validation, held_out, start, None)


def paced(s: Settings, start: bp.System) -> Settings:
    """As many steps, of 0.4 fs × √(mass/amu) of the lightest atom at most: 2 fs for silicon, 0.4 fs for hydrogen.

    The teacher and what has learnt from it share the error of a longer step; real materials do not.
    """
    lightest = float(jnp.where(start.species > 0, bp.masses(start), jnp.inf).min())
    shorter = min(1.0, 4e-4 * lightest**0.5 / s.time_step)
    return s._replace(time_step=shorter * s.time_step, run=shorter * s.run)


def model(material: Material, s: Settings) -> bp.Potential:
    """The potential that is learned: a fixed short-range repulsion plus a network."""
    network = bp.descriptor_mlp(material.train, cutoff=s.cutoff, channels=s.channels, hidden=s.hidden)
    return bp.add(bp.repulsion(cutoff=s.cutoff), network)


def ensemble_posterior(key: Key, target: bp.Target, material: Material, s: Settings, progress: bool):
    """A deep ensemble: each member with its own starting point and bootstrap sample.

    Where there are validation frames a member keeps the parameters that were best on them.
    """
    optimiser = bp.muon(bp.cosine(8e-3, s.ensemble_steps, warm_up=min(100, s.ensemble_steps // 10)))
    every = max(1, s.ensemble_steps // 40)
    algorithm = bp.optimise(target, optimiser, validation=material.validation, every=every)
    keys = jax.random.split(key, 3)
    start = bp.initial(keys[0], target, chains=s.members)
    batch = min(s.batch, len(material.train))
    return bp.infer(
        keys[1], algorithm, start, material.train,
        steps=s.ensemble_steps, batch_size=batch, progress=progress,
        rows=bp.bootstrap(keys[2], len(material.train), s.members),
    )  # fmt: skip


def sgld_posterior(key: Key, target: bp.Target, ensemble, material: Material, s: Settings, progress: bool):
    """Preconditioned SGLD from some of the ensemble's members, one chain each."""
    steps = s.burn_in + s.draws * s.thin
    step_size = bp.polynomial(s.first_step, s.last_step, s.burn_in)
    algorithm = bp.sgld(target, step_size, preconditioner=bp.rms(freeze_after=s.burn_in))
    start = jax.tree.map(lambda x: x[: s.chains], bp.healthy(ensemble).params)
    batch = min(s.batch, len(material.train))
    return bp.infer(
        key, algorithm, start, material.train,
        steps=steps, burn_in=s.burn_in, thin=s.thin, batch_size=batch, progress=progress,
    )  # fmt: skip


def first_shell(system: bp.System, cutoff: float) -> float:
    """1.4 times the typical distance [Å] to the nearest neighbour: between the first and the second shell."""
    vectors, mask = bp.displacements(system, bp.neighbors(system, cutoff))
    nearest = np.where(mask, np.linalg.norm(vectors, axis=-1), np.inf).min(-1)[np.asarray(system.species) > 0]
    return min(1.4 * float(np.median(nearest)), cutoff)


def observables(s: Settings, start: bp.System) -> dict[str, bp.Observable]:
    """What is measured."""
    spacing = s.every * s.time_step * units.ps
    return {
        "rdf": bp.rdf(r_max=6.0, bins=60),
        "adf": bp.adf(cutoff=first_shell(start, s.cutoff), bins=45),
        "energy": bp.energy_per_atom(),
        "pressure": bp.pressure(),
        "msd": bp.msd(duration=spacing * max(2, s.frames_kept // 10), every=spacing),
    }


def run_options(s: Settings) -> dict[str, int | float]:
    """Lengths and skin of a simulation, as arguments of ``simulate`` and ``propagate``."""
    return {
        "steps": s.frames_kept * s.every,
        "every": s.every,
        "equilibration": round(s.equilibration / s.time_step),
        "skin": s.skin,
    }


def truth(
    key: Key, teacher: bp.Potential, material: Material, thermostat: bp.Ensemble, s: Settings, measured, progress: bool
) -> dict[str, np.ndarray]:
    """The teacher's own values, from runs of ``s.truth`` ps in all."""
    params = teacher.init(key)
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (s.truth_runs, *jnp.shape(x))), params)
    teachers = bp.as_samples(many, teacher.spec)
    options = run_options(s)
    options["steps"] *= max(1, round(s.truth / s.run / s.truth_runs))
    runs = bp.propagate(key, teacher, teachers, material.start, thermostat, progress=progress, **options)
    return {name: np.asarray(bp.observe(o, runs).value.mean((0, 1))) for name, o in measured.items()}


class Posterior(NamedTuple):
    """What one posterior said; there are no intervals where fewer than two samples gave stable simulations."""

    samples: bp.PosteriorSamples  # all sound ones
    simulated: bp.PosteriorSamples  # those of them that were simulated
    prediction: bp.Prediction
    observed: dict[str, bp.Observed]
    intervals: dict[str, bp.Interval]
    stable: float  # share of the samples meant for simulation that neither diverged nor had an unstable run


def defined(observed: dict[str, bp.Observed]) -> dict[str, bp.Interval]:
    """Intervals of the observables that every stable run has: where no atom has two neighbours there are no angles."""
    out = {}
    for name, o in observed.items():
        try:
            out[name] = bp.interval(o, level=0.95, failed="drop")
        except bp.FailedSamples as error:
            warnings.warn(f"There is no interval of {name}. {error}", RuntimeWarning, stacklevel=2)
    return out


def consequences(
    key: Key, potential, drawn, material: Material, thermostat, s: Settings, measured, progress
) -> Posterior:
    """Held-out predictions of all samples that did not diverge; simulations and intervals of some of them."""
    samples, draw = bp.healthy(drawn), np.asarray(drawn.draw)
    if len(samples) < 2:
        raise bp.FailedSamples("A single sample is sound: it has no spread. Lower the step size.", ())
    meant = drawn[np.flatnonzero((draw.max() - draw) % s.simulated == 0)]
    simulated = bp.healthy(meant)
    runs = bp.propagate(
        key, potential, simulated, material.start, thermostat,
        replicas=max(1, s.runs // len(simulated)), throw=False, progress=progress, **run_options(s),
    )  # fmt: skip
    observed = {name: bp.observe(o, runs, samples=simulated) for name, o in measured.items()}
    stable = int((np.asarray(runs.status) == 0).all(1).sum())
    return Posterior(
        samples=samples,
        simulated=simulated,
        prediction=bp.predict(potential, samples, material.test),
        observed=observed,
        intervals=defined(observed) if stable >= 2 else {},
        stable=stable / len(meant),
    )


def quickstart(
    seed: int = 0,
    settings: Settings | None = None,
    data: str | Path | None = None,
    test: str | Path | None = None,
    progress: bool = True,
) -> tuple[Material, dict[str, Posterior], dict[str, np.ndarray] | None]:
    """All of it; returns the material, the sound posteriors by name, and the teacher's values if there is a teacher."""
    s, key = settings or (FULL if data is None else FILES), jax.random.key(seed)
    keys = jax.random.split(key, 8)
    if data is None:
        material = teacher_material(keys[0], s, progress)
        noise = bp.Noise(energy=s.energy_noise, forces=s.force_noise, stress=s.stress_noise)
    else:
        material = file_material(keys[0], s, data, test)
        s = paced(s, material.start)
        stress = 0.002 if bool(material.train.has_stress.any()) else None
        noise = bp.Noise(energy=0.001, forces=0.1, stress=stress)
    potential = model(material, s)
    target = bp.force_matching(potential, material.train, bp.scaled_normal(1.0), noise)
    target.check(material.test)
    measured, thermostat = observables(s, material.start), langevin(s, s.temperature)
    shared = (material, thermostat, s, measured, progress)
    # While one part compiles, which takes a single core, another computes.
    with ThreadPoolExecutor(3) as pool:
        true = material.teacher and pool.submit(truth, keys[3], material.teacher, *shared)
        ensemble = ensemble_posterior(keys[1], target, material, s, progress)
        parts = {"deep ensemble": pool.submit(consequences, keys[4], potential, ensemble, *shared)}
        chains = sgld_posterior(keys[2], target, ensemble, material, s, progress)
        parts["pSGLD"] = pool.submit(consequences, keys[5], potential, chains, *shared)
    found = {}
    for name, part in parts.items():
        try:
            found[name] = part.result()
        except bp.FailedSamples as error:
            warnings.warn(f"{name} is left out of the results. {error}", RuntimeWarning, stacklevel=2)
    if not found:
        raise bp.FailedSamples("Neither posterior gave sound samples. Train longer or on more data.", ())
    return material, found, true and true.result()
