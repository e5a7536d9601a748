"""Molecular dynamics of a fitted descriptor_mlp: steps per second at 64 and 512 atoms, and over its bare forces."""

import jax

import bayespot as bp
from bayespot.potentials.potential import forces
from bayespot.tree import replace
from tests.benchmarks.common import alternate, fitted, frames, report, thermostat

STEPS = {2: 4000, 4: 600}


def main() -> None:
    data = frames(32)
    potential, params = fitted(data)
    numbers = {}
    for cells, steps in STEPS.items():
        one = frames(1, cells)
        start, listed = jax.tree.map(lambda x: x[0], (one.system, one.neighbors))
        atoms, ensemble = 8 * cells**3, thermostat()

        @jax.jit
        def bare(params, position, start=start, listed=listed, steps=steps):
            def step(x, _):
                return x + 1e-9 * forces(potential)(params, replace(start, position=x), listed), None

            return jax.lax.scan(step, position, None, length=steps)[0]

        times = alternate(
            {
                "bare": lambda start=start, bare=bare: bare(params, start.position),
                "md": lambda start=start, steps=steps, ensemble=ensemble: (
                    bp.simulate(
                        jax.random.key(0),
                        potential,
                        params,
                        start,
                        ensemble,
                        steps=steps,
                        every=steps // 4,
                        progress=False,
                    ).frames.energy
                ),
            }
        )
        numbers |= {
            f"steps_per_s_{atoms}": steps / times["md"],
            f"over_bare_forces_{atoms}": times["md"] / times["bare"],
            f"us_per_atom_step_{atoms}": times["md"] / steps / atoms * 1e6,
        }
    numbers["per_atom_512_over_64"] = numbers["us_per_atom_step_512"] / numbers["us_per_atom_step_64"]
    report("dynamics", **numbers)


if __name__ == "__main__":
    main()
