r"""Bonded terms of molecules: harmonic bonds and angles, and Fourier series of dihedrals.

.. math:: U = \sum_\text{bonds} \tfrac12 k (r - r_0)^2 + \sum_\text{angles} \tfrac12 k (\theta - \theta_0)^2
              + \sum_\text{dihedrals} \sum_{n=1}^{n_\text{max}} [c_n \cos n\varphi + s_n \sin n\varphi]

They hold molecules together where a network has seen no data: the prior of a coarse-grained model.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bayespot.potentials.potential import Potential, mask_atoms
from bayespot.records.geometry import angle_between, dihedral_of, length, minimum_image
from bayespot.records.neighbors import Neighbors
from bayespot.records.system import System
from bayespot.typing import Array, Float, Key, Params

CUTOFF = 1.0
"""What the potential asks of the lists of neighbours [Å], which it does not use; they cannot be of nothing."""

NAMES = {"bond": ("k", "r0"), "angle": ("k", "theta0"), "dihedral": ("cosine", "sine")}


class Topology(NamedTuple):
    """Which atoms of a molecule the bonded terms connect, by their places in it, from 0.

    Attributes:
        atoms: number in the molecule.
        bonds: pairs of atoms.
        angles: triples, the vertex in the middle.
        dihedrals: quadruples of consecutive atoms, or any others (impropers).
    """

    atoms: int
    bonds: tuple[tuple[int, int], ...] = ()
    angles: tuple[tuple[int, int, int], ...] = ()
    dihedrals: tuple[tuple[int, int, int, int], ...] = ()


def topology(bonds: Sequence[Sequence[int]], atoms: int | None = None) -> Topology:
    """The topology of a molecule with all angles and dihedrals that its bonds form.

    Args:
        bonds: pairs of atoms by their places in the molecule.
        atoms: number in the molecule; default as many as the bonds name.

    Raises:
        ValueError: for a bond of an atom with itself, one that appears twice, or atoms out of range.
    """
    pairs = [tuple(sorted(int(i) for i in bond)) for bond in bonds]
    atoms = 1 + max((j for _, j in pairs), default=0) if atoms is None else atoms
    near = {i: sorted({*(b for a, b in pairs if a == i), *(a for a, b in pairs if b == i)}) for i in range(atoms)}
    angles = [(i, j, k) for j in near for i in near[j] for k in near[j] if i < k]
    dihedrals = [
        (i, j, k, l) for j, k in pairs for i in near.get(j, ()) for l in near.get(k, ()) if len({i, j, k, l}) == 4
    ]
    found = Topology(atoms, tuple(pairs), tuple(angles), tuple(dihedrals))  # pyright: ignore[reportArgumentType]
    if len(set(pairs)) < len(pairs):
        raise ValueError(
            f"Every bond must be given once. Got {sorted(b for b in set(pairs) if pairs.count(b) > 1)} twice."
        )
    _checked_topology(found)
    return found


def bonded(
    atoms: int,
    bonds: Sequence = (),
    angles: Sequence = (),
    dihedrals: Sequence = (),
    initial: Mapping[str, Mapping] | None = None,
) -> Potential:
    r"""Bonded terms within molecules, for systems of consecutive copies of one molecule, or of a single one.

    The places of atoms decide who is bonded: the first ``atoms`` of a system are its first molecule, and so on. A
    molecule may cross the faces of a periodic box, whole or with each atom wrapped: each bond vector is the minimum
    image, so that bonds must be shorter than half the box is thick. Longer ones are not refused, since nothing tells
    them from a molecule across a face: they count as their shorter image, one of 3.5 Å along a box of 5 Å as 1.5 Å. In
    open space any length is right. Each term is shared equally by its atoms. The cutoff is a formality, the lists of
    neighbours are not used.

    ============================  =====================================================
    symbol                        parameter, initial value
    ============================  =====================================================
    :math:`k, r_0`                ``bond: {k (b,) [eV/Å²], r0 (b,) [Å]}``
    :math:`k, \theta_0`           ``angle: {k (a,) [eV/rad²], theta0 (a,) [rad]}``
    :math:`c_n, s_n`              ``dihedral: {cosine (d, n) [eV], sine (d, n) [eV]}``
    ============================  =====================================================

    The series averages to 0 over the circle. Its coefficients are linear, and every curve has one set of them. A term
    :math:`k_n [1 + \cos(n\varphi - \varphi_n)]` of a force field is :math:`c_n = k_n \cos\varphi_n` and
    :math:`s_n = k_n \sin\varphi_n`, up to the constant :math:`k_n`.

    Args:
        atoms: number in a molecule.
        bonds, angles, dihedrals: places of the atoms of each term, as in ``Topology``; ``*topology(bonds)`` gives all.
        initial: parameters at the start, one entry for each kind of term that there is.

    Raises:
        ValueError: for atoms out of range, or initial values that are missing or of another shape; when evaluated, for
            a system of fewer atoms than a molecule. Energies are NaN where a system does not end with a whole molecule.
    """
    terms = _checked_topology(Topology(int(atoms), *(tuple(map(tuple, t)) for t in (bonds, angles, dihedrals))))
    start = _checked_initial(terms, {} if initial is None else initial)
    places = {kind: np.asarray(rows, int) for kind, rows in kinds(terms).items()}

    def init(key: Key) -> Params:
        return {kind: {name: jnp.asarray(x, float) for name, x in values.items()} for kind, values in start.items()}

    def atom_energies(params: Params, system: System, neighbors: Neighbors) -> Float[Array, " N"]:
        position, box, whole = _molecules(system, terms.atoms)
        total = jnp.zeros(position.shape[:2], position.dtype)
        for kind, rows in places.items():
            energy = _ENERGIES[kind](params[kind], COORDINATES[kind](position, box, rows))
            total = total + jnp.matmul(energy, _shares(rows, terms.atoms, energy.dtype), precision="highest")
        energies = jnp.where(whole[:, None], total, jnp.nan).ravel()
        rest = jnp.full(len(system.species) - len(energies), jnp.nan, energies.dtype)
        return mask_atoms(jnp.concatenate([energies, rest]), system.species, ())

    lists = {f"{kind}s": [list(map(int, row)) for row in rows] for kind, rows in kinds(terms).items()}
    values = {kind: {n: np.asarray(x).tolist() for n, x in group.items()} for kind, group in start.items()}
    spec = {"name": "bonded", "atoms": terms.atoms, **lists, "initial": values}
    return Potential(init, atom_energies, CUTOFF, (), spec)


def kinds(terms: Topology) -> dict[str, tuple]:
    """The kinds of term that there are, with the places of their atoms."""
    return {k: rows for k, rows in zip(NAMES, (terms.bonds, terms.angles, terms.dihedrals), strict=True) if rows}


def _checked_topology(terms: Topology) -> Topology:
    if terms.atoms < 1:
        raise ValueError(f"A molecule has one atom or more. Got {terms.atoms}.")
    for (kind, rows), size in zip(kinds(terms).items(), _sizes(terms), strict=True):
        for row in rows:
            if len(row) != size or len(set(row)) < size or min(row) < 0 or max(row) >= terms.atoms:
                raise ValueError(
                    f"A {kind} connects {size} different atoms with places from 0 to {terms.atoms - 1}. Got {row}."
                )
    return terms


def _sizes(terms: Topology) -> list[int]:
    return [{"bond": 2, "angle": 3, "dihedral": 4}[kind] for kind in kinds(terms)]


def _checked_initial(terms: Topology, initial: Mapping[str, Mapping]) -> dict[str, dict[str, np.ndarray]]:
    there = kinds(terms)
    if set(initial) != set(there):
        raise ValueError(f"`initial` must have values for the terms there are, {list(there)}. Got {list(initial)}.")
    out = {}
    for kind, rows in there.items():
        values = {name: np.asarray(x, float) for name, x in initial[kind].items()}
        shapes = {x.shape for x in values.values()}
        shape = next(iter(shapes), ())
        if set(values) != set(NAMES[kind]) or len(shapes) > 1 or shape[:1] != (len(rows),):
            raise ValueError(
                f"The initial values of the {kind}s are {' and '.join(NAMES[kind])} for each of the {len(rows)}. "
                f"Got { ({name: x.shape for name, x in values.items()}) }."
            )
        if len(shape) != (2 if kind == "dihedral" else 1) or not all(np.isfinite(x).all() for x in values.values()):
            raise ValueError(
                f"Values of {kind}s must be finite, in arrays of {'two axes' if kind == 'dihedral' else 'one axis'}. "
                f"Got the shape {shape}."
            )
        out[kind] = values
    return out


def _molecules(system: System, atoms: int) -> tuple[Array, Array, Array]:
    """Positions ``(m, atoms, 3)``, boxes ``(m or 1, 1, 3, 3)`` and which molecules are of real atoms, ``(m,)``.

    What is not gets the positions of a helix, on which every term is smooth.
    """
    rows = len(system.species)
    if rows < atoms:
        raise ValueError(f"The molecules of `bonded` have {atoms} atoms. Got a system of {rows}. Give whole molecules.")
    m = rows // atoms
    whole = (system.species[: m * atoms] > 0).reshape(m, atoms).all(1)
    turn = np.arange(atoms)
    helix = jnp.asarray(np.stack([np.cos(turn), np.sin(turn), 0.3 * turn], -1), system.position.dtype)
    position = jnp.where(whole[:, None, None], system.position[: m * atoms].reshape(m, atoms, 3), helix)
    box = system.box[None] if system.box.ndim == 2 else system.box[: m * atoms : atoms]
    return position, box[:, None], whole


def _vectors(position: Array, box: Array, start: np.ndarray, end: np.ndarray) -> Array:
    return minimum_image(position[:, end] - position[:, start], box)


def _bond(position: Array, box: Array, rows: np.ndarray) -> Float[Array, "m b"]:
    return length(_vectors(position, box, rows[:, 0], rows[:, 1]))


def _angle(position: Array, box: Array, rows: np.ndarray) -> Float[Array, "m a"]:
    return angle_between(*(_vectors(position, box, rows[:, 1], rows[:, end]) for end in (0, 2)))


def _dihedral(position: Array, box: Array, rows: np.ndarray) -> Float[Array, "m d"]:
    return dihedral_of(*(_vectors(position, box, rows[:, n], rows[:, n + 1]) for n in range(3)))


def _series(params: Params, phi: Float[Array, "m d"]) -> Float[Array, "m d"]:
    cosine, sine = (params[name].astype(phi.dtype) for name in NAMES["dihedral"])
    angle = jnp.arange(1, cosine.shape[-1] + 1, dtype=phi.dtype) * phi[..., None]
    return (cosine * jnp.cos(angle) + sine * jnp.sin(angle)).sum(-1)


def _harmonic(kind: str):
    def energy(params: Params, x: Array) -> Array:
        k, rest = (params[name].astype(x.dtype) for name in NAMES[kind])
        return 0.5 * k * (x - rest) ** 2

    return energy


def _shares(rows: np.ndarray, atoms: int, dtype) -> Float[Array, "n atoms"]:
    """What part of each term belongs to each atom."""
    share = np.zeros((len(rows), atoms))
    np.put_along_axis(share, rows, 1 / rows.shape[1], 1)
    return jnp.asarray(share, dtype)


COORDINATES = {"bond": _bond, "angle": _angle, "dihedral": _dihedral}
_ENERGIES = {"bond": _harmonic("bond"), "angle": _harmonic("angle"), "dihedral": _series}
