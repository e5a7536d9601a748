"""A particle on a spring, for tests of targets that simulate."""

import jax.numpy as jnp
import numpy as np

from bayespot.observables.observable import Observable, average
from bayespot.potentials.potential import Potential
from bayespot.records.system import system
from bayespot.simulation.ensemble import nvt_langevin
from bayespot.targets.reference_run import reference_run

KT = 0.7
SPRING = Potential(
    lambda key: {"k": jnp.asarray(2.0), "c": jnp.asarray(0.3)},
    lambda p, s, n: 0.5 * p["k"] * ((s.position - p["c"]) ** 2).sum(-1),
    1.0, (), {"name": "spring"},
)  # fmt: skip
SQUARE = Observable(lambda f: (f.system.position**2).mean(), average, "x²", "Å²")


def spring_run(replicas=4, steps=1000, min_share=0.9, kT=KT, **other):
    start = system(np.zeros((1, 3)), [1], np.zeros((3, 3)))
    thermostat = nvt_langevin(kT=kT, dt=0.2, gamma=1.0)
    options = {"every": 10, "skin": 5.0, "max_kT": 100.0} | other
    return reference_run(start, thermostat, steps=steps, replicas=replicas, min_share=min_share, **options)
