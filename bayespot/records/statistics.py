"""What a data set holds: energies per species, scale of the forces, and a table of statistics."""

import numpy as np

from bayespot.records.dataset import Dataset


def reference_energies(data: Dataset, ridge: float = 1e-6) -> dict[int, float]:
    r"""Energies per species [eV] that explain most of the total energies; a network then learns the small rest.

    With the fractions :math:`c_{ms} = n_{ms}/n_m` of the species and the energies per atom
    :math:`\epsilon_m = E_m/n_m`, the energies are :math:`e_s = \bar\epsilon + d_s`, where :math:`d` minimises

    .. math:: \frac{1}{M}\sum_m \Big(\epsilon_m - \bar\epsilon - \sum_s c_{ms} d_s\Big)^2 + \lambda\,|d|^2 .

    What the compositions leave open, they all share: with a single composition every species gets the mean energy
    per atom.

    ============ ============== =========================================
    λ            ``ridge``      dimensionless, relative to fractions of 1
    ============ ============== =========================================

    Args:
        data: frames, of which those with an energy are used.
        ridge: strength of the regularisation; where compositions vary, its effect is of this relative order.

    Returns:
        atomic number → energy [eV], for every species of the data.

    Raises:
        ValueError: when no frame has an energy, or ``ridge`` is not positive.
    """
    used = np.asarray(data.has_energy)
    if not used.any():
        raise ValueError("Reference energies need frames with an energy. Got none.")
    if not ridge > 0:
        raise ValueError(f"ridge must be positive. Got {ridge}. Use 1e-6.")
    elements = data.species
    numbers = np.asarray(data.system.species)[used]
    count = np.stack([(numbers == z).sum(-1) for z in elements], -1).astype(float)
    total = count.sum(-1)
    per_atom = np.asarray(data.energy, float)[used] / total
    mean = per_atom.mean()
    # Least squares with extra rows rather than normal equations, whose condition number is the square.
    rows = np.concatenate([count / total[:, None], np.sqrt(ridge * len(total)) * np.eye(len(elements))])
    rest = np.concatenate([per_atom - mean, np.zeros(len(elements))])
    deviation = np.linalg.lstsq(rows, rest)[0]
    return {z: float(mean + d) for z, d in zip(elements, deviation, strict=True)}


def force_scale(data: Dataset) -> float:
    """Root mean square of the force components over real atoms [eV/Å].

    Raises:
        ValueError: when no frame has forces.
    """
    used = np.asarray(data.has_forces)
    if not used.any():
        raise ValueError("The force scale needs frames with forces. Got none.")
    real = (np.asarray(data.system.species) > 0) & used[:, None]
    return float(np.sqrt(np.mean(np.asarray(data.forces, float)[real] ** 2)))


def shortest_distance(data: Dataset) -> float:
    """Shortest distance between two atoms [Å], images included; inf where none lies within the cutoff."""
    shortest = np.inf
    for x, h, index, shift in zip(
        *(np.asarray(a) for a in (data.system.position, data.system.box, data.neighbors.index, data.neighbors.shift)),
        strict=True,
    ):
        i, k = np.nonzero(index < len(x))
        if len(i):
            vectors = x[index[i, k]] + shift[i, k] @ h - x[i]
            shortest = min(shortest, float(np.sqrt((vectors**2).sum(-1).min())))
    return shortest


def summary(data: Dataset) -> str:
    """Statistics of a data set as a text table, one row per group."""
    counts = data.atom_counts
    neighbours = np.asarray((data.neighbors.index < data.system.species.shape[1]).sum(-1))
    neighbours = neighbours[np.asarray(data.system.species) > 0]
    masks = {"energies": data.has_energy, "forces": data.has_forces, "stresses": data.has_stress}
    labels = ", ".join(f"{int(np.sum(m))} {name}" for name, m in masks.items())
    lines = [
        f"{data.source}: {len(data)} frames of {counts.min()}–{counts.max()} atoms, species "
        f"{', '.join(map(str, data.species))}",
        f"labels: {labels}",
        f"neighbours within {data.cutoff:g} Å: {neighbours.min()} / {neighbours.mean():.1f} / {neighbours.max()} "
        f"(least / mean / most), shortest distance {shortest_distance(data):.3f} Å",
        "",
    ]
    head = f"{'group':<24}{'frames':>8}{'atoms':>8}{'energy/atom':>13}{'std':>9}{'force rms':>11}{'stress rms':>12}"
    units = f"{'':<40}{'[eV]':>13}{'[eV]':>9}{'[eV/Å]':>11}{'[eV/Å³]':>12}"
    lines += [head, units, "-" * len(head)]
    group = np.asarray(data.group)
    for k, name in enumerate(data.group_names):
        if (group == k).any():
            lines.append(_row(name, data[np.flatnonzero(group == k)]))
    if len(np.unique(group)) > 1:
        lines.append(_row("all", data))
    return "\n".join(lines)


def _row(name: str, data: Dataset) -> str:
    """Statistics of one group; ``—`` where there is no label."""
    counts, has = data.atom_counts, np.asarray(data.has_energy)
    energy = np.asarray(data.energy, float)[has] / counts[has]
    stress = np.asarray(data.stress, float)[np.asarray(data.has_stress)]
    cells = [
        (f"{energy.mean():.4f}" if len(energy) else "—", 13),
        (f"{energy.std(ddof=1):.4f}" if len(energy) > 1 else "—", 9),
        (f"{force_scale(data):.4f}" if np.asarray(data.has_forces).any() else "—", 11),
        (f"{np.sqrt((stress**2).mean()):.5f}" if len(stress) else "—", 12),
    ]
    return f"{name[:23]:<24}{len(data):>8}{counts.sum():>8}" + "".join(f"{text:>{width}}" for text, width in cells)
