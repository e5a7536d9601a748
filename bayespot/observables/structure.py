"""Structure: radial and angular distribution functions, coordination number, tetrahedral order."""

from functools import cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from bayespot.observables.observable import Observable, Weights, average, sound
from bayespot.observables.pairs import (
    NEAREST,
    half_height,
    require_species,
    require_volume,
    selected,
    sound_boxes,
    symbols,
    translations,
    wrapped,
)
from bayespot.records.system import System, heights, volume
from bayespot.records.trajectory import Frame, Trajectory
from bayespot.typing import Array, Float, Int


def rdf(r_max: float, bins: int = 100, pair: tuple[int, int] | None = None) -> Observable:
    r"""Radial distribution function: how much more often than in an ideal gas a neighbour is found at a distance.

    .. math:: g_{ab}(r) = \frac{V}{N_a N_b\, v_\mathrm{shell}(r)}
              \sum_{i \in a} \sum_{j \in b} \#\{ n : r \le |x_j + n h - x_i| < r + \Delta r \},
              \qquad v_\mathrm{shell} = \tfrac{4}{3}\pi[(r+\Delta r)^3 - r^3]

    Periodic images are all counted, so ``r_max`` may exceed half the box. The prefactor has :math:`N_a N_b`, not
    :math:`N_a(N_a-1)`: coordination numbers :math:`(N_b/V)\int g\,4\pi r^2 dr` are exact, and an ideal gas of
    like atoms has :math:`g = 1 - 1/N_a`.

    Args:
        r_max: largest distance [Å].
        bins: number of equal bins; the coordinate is their centre.
        pair: atomic numbers ``(a, b)``; default all atoms.

    Raises:
        ValueError: for a non-positive argument; in ``observe`` for an open box or an absent species.

    Reference: Allen and Tildesley, *Computer Simulation of Liquids*, 2nd ed. (2017), section 8.2.
    """
    if r_max <= 0 or bins < 1:
        raise ValueError(f"rdf needs r_max > 0 and at least one bin. Got r_max={r_max}, bins={bins}.")
    edges = np.linspace(0.0, r_max, bins + 1)
    shells = 4.0 / 3.0 * np.pi * np.diff(edges**3)
    name = "g(r)" + symbols(pair)

    @cache  # the same function for the same images: no second compilation
    def frame(images: tuple | None):
        def function(frame: Frame) -> Float[Array, "bins"]:
            system = frame.system
            counts = _pair_counts(system, pair, images or NEAREST, r_max, bins)
            a, b = (selected(system.species, z).sum() for z in pair or (None, None))
            g = counts * volume(system.box) / (a * b * shells)
            if images is None:
                g = jnp.where(edges[1:] <= half_height(system) * (1 + 1e-6), g, jnp.nan)
            return g.astype(system.position.dtype)

        return function

    def prepare(trajectories: Trajectory) -> Observable:
        require_volume(trajectories, name)
        require_species(trajectories, pair or (), name)
        return observable._replace(frame=frame(translations(sound_boxes(trajectories), r_max)), prepare=None)

    centres = 0.5 * (edges[1:] + edges[:-1])
    observable = Observable(frame(None), average, name, "", centres, "r [Å]", prepare)
    return observable


def shell_averages(r: Float[np.ndarray, "n"], g: Float[np.ndarray, "n"], rdf: Observable) -> Float[np.ndarray, "bins"]:
    r"""A g(r) that is known at points, e.g. measured, averaged over the shells in which ``rdf`` counts (host).

    .. math:: \bar g_k = \int_{r_k}^{r_{k+1}} g(r)\, r^2\, dr \Big/ \int_{r_k}^{r_{k+1}} r^2\, dr

    with g linear between the points. Its values at the centres of the bins differ from these on the flanks of peaks:
    for water in bins of 0.2 Å by up to 0.2.

    Args:
        r: distances [Å], increasing, to the largest one of ``rdf`` at least; g is constant below the first.
        g: the curve, no unit.
        rdf: an observable made by ``rdf``.

    Raises:
        ValueError: for another observable, numbers that are not finite, or distances that do not increase or end too
            early.

    Reference: what the histogram of ``rdf`` counts, Allen and Tildesley (2017), section 8.2.
    """
    r, g = np.asarray(r, np.float64), np.asarray(g, np.float64)
    centres = np.asarray(rdf.coordinate, np.float64)
    if rdf.axis != "r [Å]":
        raise ValueError(f"shell_averages needs an observable made by rdf. Got {rdf.name}.")
    edges = np.append(centres - centres[0], centres[-1] + centres[0])
    if r.ndim != 1 or r.shape != g.shape or not np.isfinite(r).all() or not np.isfinite(g).all():
        raise ValueError(f"Need finite distances and as many finite values. Got the shapes {r.shape} and {g.shape}.")
    if (np.diff(r) <= 0).any() or r.max(initial=0) < edges[-1] * (1 - 1e-6):
        raise ValueError(
            f"The distances must increase and reach {edges[-1]:.4g} Å. Got {len(r)}, up to {r.max(initial=0):.4g} Å. "
            "Give the rdf a smaller r_max."
        )

    def weighted(x: np.ndarray) -> np.ndarray:
        return np.interp(x, r, g) * x**2

    nodes = np.union1d(r[(r > 0) & (r < edges[-1])], edges)
    a, b = nodes[:-1], nodes[1:]
    pieces = (b - a) / 6 * (weighted(a) + 4 * weighted((a + b) / 2) + weighted(b))  # Simpson's rule, exact for cubics
    return np.add.reduceat(pieces, np.searchsorted(a, edges[:-1])) / (np.diff(edges**3) / 3)


def _pair_counts(system: System, pair, images, r_max: float, bins: int) -> Float[Array, "bins"]:
    """Number of ordered pairs (a around it b) per bin of distance, the images of an atom itself included."""
    n = system.species.shape[0]
    i, j = np.triu_indices(n, 1)
    a, b = (selected(system.species, z) for z in pair or (None, None))
    dtype = system.position.dtype
    weight = (a[i] & b[j]).astype(dtype) + (b[i] & a[j]).astype(dtype)
    vectors = wrapped(system, system.position[j] - system.position[i])
    moves = jnp.asarray(images, dtype) @ system.box

    def add(counts, move):
        index = jnp.floor(jnp.linalg.norm(vectors + move, axis=-1) * (bins / r_max))
        return counts.at[jnp.minimum(index, bins).astype(jnp.int32)].add(weight), None

    counts, _ = jax.lax.scan(add, jnp.zeros(bins + 1, dtype), moves)
    self_index = jnp.floor(jnp.linalg.norm(_self_images(system, r_max, images), axis=-1) * (bins / r_max))
    both = (a & b).sum().astype(dtype)
    return counts.at[jnp.minimum(self_index, bins).astype(jnp.int32)].add(both)[:bins]


def _self_images(system: System, r_max: float, images) -> Float[Array, "n 3"]:
    """Vectors from an atom to its own images; its distance 0 to itself is moved out of range."""
    moves = jnp.asarray(images[1:] or ((0, 0, 0),), system.position.dtype) @ system.box
    return jnp.where(jnp.any(moves != 0, axis=-1, keepdims=True), moves, 2.0 * r_max)


def coordination(cutoff: float, pair: tuple[int, int] | None = None) -> Observable:
    r"""Coordination number: how many neighbours an atom has within a distance, on average over atoms and frames,

    .. math:: n_{ab} = \frac{1}{N_a} \sum_{i \in a} \sum_{j \in b} \#\{ n : 0 < |x_j + n h - x_i| < r_c \}
              = \frac{N_b}{V} \int_0^{r_c} g_{ab}(r)\, 4\pi r^2\, dr .

    Periodic images count like other atoms, so the cutoff may exceed half the box. The box may be open.

    Args:
        cutoff: :math:`r_c`, usually the first minimum of the RDF [Å].
        pair: atomic numbers ``(a, b)``: neighbours b around the atoms a; default all atoms.

    Raises:
        ValueError: for a cutoff that is not positive; in ``observe`` for an absent species.
    """
    if cutoff <= 0:
        raise ValueError(f"coordination needs cutoff > 0 [Å]. Got {cutoff}.")
    name = "coordination" + symbols(pair)

    @cache  # the same function for the same images: no second compilation
    def frame(images: tuple | None):
        def function(frame: Frame) -> Float[Array, ""]:
            system = frame.system
            neighbors = _pair_counts(system, pair, images or NEAREST, cutoff, 1)[0]
            count = neighbors / selected(system.species, None if pair is None else pair[0]).sum()
            if images is None:
                count = jnp.where(cutoff <= half_height(system) * (1 + 1e-6), count, jnp.nan)
            return count.astype(system.position.dtype)

        return function

    def prepare(trajectories: Trajectory) -> Observable:
        require_species(trajectories, pair or (), name)
        return observable._replace(frame=frame(translations(sound_boxes(trajectories), cutoff)), prepare=None)

    observable = Observable(frame(None), average, name, "", prepare=prepare)
    return observable


def adf(cutoff: float, bins: int = 90, triplet: tuple[int, int, int] | None = None) -> Observable:
    r"""Angular distribution function: density of the angles between two neighbours as seen from their centre.

    .. math:: p(\theta) = \frac{1}{\#} \sum_i \sum_{j<k} \delta(\theta - \theta_{jik}),
              \qquad r_{ij}, r_{ik} < r_c, \qquad \int_0^{180°} p(\theta)\, d\theta = 1

    The angle is in degrees and the density per degree. All triplets of a run count alike (a ratio of averages). There
    is no division by :math:`\sin\theta`: without correlation :math:`p \propto \sin\theta`.

    Args:
        cutoff: distance within which two atoms are neighbours [Å].
        bins: number of equal bins from 0 to 180 degrees.
        triplet: atomic numbers ``(neighbour, centre, neighbour)``; default all atoms.

    Raises:
        ValueError: for a non-positive argument; in ``observe`` for an absent species. A run without any triplet
            gives NaN, which ``interval`` refuses.
    """
    if cutoff <= 0 or bins < 1:
        raise ValueError(f"adf needs cutoff > 0 and at least one bin. Got cutoff={cutoff}, bins={bins}.")
    width = 180.0 / bins
    name = "ADF" + symbols(triplet)

    @cache  # the same function for the same sizes: no second compilation
    def frame(images: tuple | None, capacity: int | None):
        def function(frame: Frame) -> Float[Array, "bins"]:
            counts, most = _angle_counts(frame.system, triplet, images or NEAREST, cutoff, bins, capacity)
            valid = True if capacity is None else most <= capacity
            if images is None:
                valid = valid & (cutoff <= half_height(frame.system) * (1 + 1e-6))
            return jnp.where(valid, counts, jnp.nan)

        return function

    def combine(values: Float[Array, "T bins"], weights: Weights) -> Float[Array, "bins"]:
        counts = average(values, weights)
        return counts / (counts.sum() * width)

    def prepare(trajectories: Trajectory) -> Observable:
        require_species(trajectories, triplet or (), name)
        boxes = sound_boxes(trajectories)
        images = translations(boxes, cutoff) if np.isfinite(heights(boxes)).any() else NEAREST
        capacity = _most_neighbors(trajectories, images, cutoff)
        return observable._replace(frame=frame(images, max(capacity, 2)), prepare=None)

    centres = (np.arange(bins) + 0.5) * width
    observable = Observable(frame(None, None), combine, name, "1/degree", centres, "angle [degree]", prepare)
    return observable


def _neighbor_vectors(system: System, images, cutoff: float) -> tuple[Float[Array, "N K 3"], Float[Array, "N K"]]:
    """Vectors from every atom to all others and their images, and distances; infinite beyond the cutoff."""
    n = system.species.shape[0]
    dtype = system.position.dtype
    vectors = wrapped(system, system.position[None, :] - system.position[:, None])
    moves = jnp.asarray(images, dtype) @ system.box
    vectors = vectors[:, None] + moves[:, None]
    real = (system.species > 0)[:, None] & (system.species > 0)
    itself = np.eye(n, dtype=bool)[:, None] & ~np.any(images, axis=-1)[:, None]
    squared = (vectors**2).sum(-1)
    near = real[:, None] & ~itself & (squared < cutoff**2)
    distance = jnp.where(near, jnp.sqrt(jnp.where(near, squared, 1.0)), jnp.inf)
    return vectors.reshape(n, -1, 3), distance.reshape(n, -1)


def _most_neighbors(trajectories: Trajectory, images, cutoff: float) -> int:
    """Largest number of neighbours of any atom in the sound runs (host)."""
    systems = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), trajectories.frames.system)

    most = np.asarray(_largest_counts(systems, images=images, cutoff=cutoff)).reshape(trajectories.frames.energy.shape)
    return int(most[sound(trajectories)].max(initial=2))


@partial(jax.jit, static_argnames=("images", "cutoff"))
def _largest_counts(systems: System, *, images, cutoff: float) -> Int[Array, "T"]:
    return jax.lax.map(lambda s: jnp.isfinite(_neighbor_vectors(s, images, cutoff)[1]).sum(-1).max(), systems)


def _angle_counts(system: System, triplet, images, cutoff: float, bins: int, capacity: int | None):
    """Number of angles per bin, and the largest number of neighbours that an atom has."""
    vectors, distance = _neighbor_vectors(system, images, cutoff)
    n, width = distance.shape
    found = jnp.isfinite(distance)
    k = width if capacity is None else min(capacity, width)
    _, nearest = jax.lax.top_k(-distance, k)
    arms = jnp.take_along_axis(vectors, nearest[..., None], axis=1)
    length = jnp.take_along_axis(distance, nearest, axis=1)
    there = jnp.isfinite(length)
    species = system.species[nearest % n]
    first, centre, second = (None, None, None) if triplet is None else triplet
    i, j = np.triu_indices(k, 1)
    a, b = selected(species, first) & there, selected(species, second) & there
    weight = ((a[:, i] & b[:, j]) | (b[:, i] & a[:, j])) & selected(system.species, centre)[:, None]
    unit = arms / jnp.where(there, jnp.maximum(length, 1e-12), 1.0)[..., None]
    p, q = unit[:, i], unit[:, j]
    # atan2 keeps its precision near 0 and 180 degrees, where the arc cosine loses half the digits.
    angle = 2.0 * jnp.arctan2(jnp.linalg.norm(p - q, axis=-1), jnp.linalg.norm(p + q, axis=-1))
    index = jnp.clip(jnp.floor(angle * (bins / np.pi)), 0, bins - 1).astype(jnp.int32)
    counts = jnp.zeros(bins, system.position.dtype).at[index].add(weight.astype(system.position.dtype))
    return counts, found.sum(-1).max()


def tetrahedral_order(species: int | None = None) -> Observable:
    r"""Tetrahedral order of the four nearest neighbours, on average over atoms and frames,

    .. math:: q = 1 - \frac38 \sum_{j<k\le 4} \left( \cos\psi_{jk} + \tfrac13 \right)^2,

    with the angle :math:`\psi_{jk}` that two of the neighbours form at the centre. It is 1 for a regular tetrahedron
    and 0 on average for neighbours in independent random directions. Periodic images count like other atoms.

    Args:
        species: atomic number of the centres and of the neighbours, e.g. 8 for the network of water; default all.

    Raises:
        ValueError: in ``observe`` for an absent species, or if an atom has fewer than four others around it.

    Reference: Errington and Debenedetti, *Nature* 409, 318 (2001).
    """
    name = "tetrahedral order" + symbols(None if species is None else (species,))

    @cache  # the same function for the same images: no second compilation
    def frame(images: tuple | None, radius: float | None):
        def function(frame: Frame) -> Float[Array, ""]:
            system = frame.system
            vectors, distance = _four_nearest(system, species, images or NEAREST)
            centre = selected(system.species, species)
            farthest = jnp.where(centre, distance[:, -1], 0.0).max()
            unit = vectors / jnp.where(jnp.isfinite(distance), distance, 1.0)[..., None]
            j, k = np.triu_indices(4, 1)
            cosine = (unit[:, j] * unit[:, k]).sum(-1)
            q = 1.0 - 0.375 * ((cosine + 1 / 3) ** 2).sum(-1)
            # Beyond the radius that the images cover, a nearer image may be missing.
            known = farthest <= (half_height(system) * (1 + 1e-6) if radius is None else radius)
            mean = jnp.where(centre, q, 0.0).sum() / centre.sum()
            return jnp.where(known & jnp.isfinite(farthest), mean, jnp.nan).astype(system.position.dtype)

        return function

    def prepare(trajectories: Trajectory) -> Observable:
        require_species(trajectories, () if species is None else (species,), name)
        boxes = sound_boxes(trajectories)
        # With few images the fourth distance is too long, if anything: the images that it reaches are enough.
        bound = _fourth_distance(trajectories, species, NEAREST)
        if not np.isfinite(bound):
            steps = [(0, 1, -1) if length > 0 else (0,) for length in np.abs(boxes).sum((0, 2))]
            bound = _fourth_distance(trajectories, species, tuple(product(*steps)))
        if not np.isfinite(bound):
            raise ValueError(f"{name} needs four other atoms around every atom. Got fewer. Use a larger system.")
        radius = float(np.ceil(2.0 * bound + 1e-3) / 2.0)  # coarse, so that similar runs share one compilation
        return observable._replace(frame=frame(translations(boxes, radius), radius), prepare=None)

    observable = Observable(frame(None, None), average, name, "", prepare=prepare)
    return observable


def _four_nearest(system: System, species: int | None, images) -> tuple[Float[Array, "N 4 3"], Float[Array, "N 4"]]:
    """Vectors to the four nearest atoms of a species, or images of them, and their distances; infinite if missing."""
    vectors, distance = _neighbor_vectors(system, images, np.inf)
    distance = jnp.where(jnp.tile(selected(system.species, species), len(images)), distance, jnp.inf)
    if distance.shape[1] < 4:
        return jnp.zeros((len(distance), 4, 3), vectors.dtype), jnp.full((len(distance), 4), jnp.inf, vectors.dtype)
    _, nearest = jax.lax.top_k(-distance, 4)
    return jnp.take_along_axis(vectors, nearest[..., None], axis=1), jnp.take_along_axis(distance, nearest, axis=1)


def _fourth_distance(trajectories: Trajectory, species: int | None, images) -> float:
    """Longest distance to a fourth neighbour in the sound runs (host)."""
    systems = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), trajectories.frames.system)
    longest = np.asarray(_fourth_distances(systems, species=species, images=images))
    return float(longest.reshape(trajectories.frames.energy.shape)[sound(trajectories)].max(initial=0.5))


@partial(jax.jit, static_argnames=("species", "images"))
def _fourth_distances(systems: System, *, species: int | None, images) -> Float[Array, "T"]:
    def longest(system):
        return jnp.where(selected(system.species, species), _four_nearest(system, species, images)[1][:, -1], 0).max()

    return jax.lax.map(longest, systems)
