"""DimeNet++: its bases, its triplets against explicit loops, and its size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import eval_legendre, spherical_jn

from bayespot.potentials.dimenet import (
    Interaction,
    bessel_roots,
    dimenet,
    envelope,
    legendre_basis,
    reverse_slots,
    spherical_bessel_basis,
    triplet_basis,
)
from bayespot.potentials.neighbor_list import neighbor_list
from bayespot.potentials.potential import energy_and_forces
from bayespot.records.neighbors import Neighbors, displacements, neighbors
from bayespot.records.system import system
from bayespot.tree import replace


def small(species=(14,), cutoff=3.6, blocks=2):
    return dimenet(species, cutoff, width=8, blocks=blocks, radial=3, angular=4, output_width=8, output_layers=1)


def gauss_legendre(a, b, n=200):
    x, w = np.polynomial.legendre.leggauss(n)
    return 0.5 * (b - a) * x + 0.5 * (b + a), 0.5 * (b - a) * w


# Bases


def scipy_basis(x, angular, radial):
    z = bessel_roots(angular, radial)
    l = np.arange(angular)[:, None]
    return 2**0.5 * spherical_jn(l, z * x[:, None, None]) / np.abs(spherical_jn(l + 1, z))


@pytest.mark.parametrize(("angular", "radial"), [(2, 1), (7, 6), (10, 12)])
def test_roots_are_all_the_first_roots(angular, radial):
    z = bessel_roots(angular, radial)
    l = np.arange(angular)[:, None]
    np.testing.assert_allclose(spherical_jn(l, z), 0, atol=1e-13)
    np.testing.assert_allclose(z[0], np.pi * np.arange(1, radial + 1))
    assert z[1, 0] == pytest.approx(4.493409457909064)  # tan z = z
    for order in range(angular):  # no root is left out: the sign changes once between neighbours in the list
        fine = np.linspace(1e-3 + 0.5 * order, z[order, -1] - 1e-6, 20_000)
        assert (np.diff(np.sign(spherical_jn(order, fine))) != 0).sum() == radial - 1


@pytest.mark.parametrize(("angular", "radial"), [(2, 1), (7, 6), (10, 12)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float64, 1e-12), (jnp.float32, 2e-6)])
def test_bessel_basis_equals_scipy(angular, radial, dtype, tolerance):
    """Down to x = 0, where the recursion that is usual for it loses all digits; relative to the largest value."""
    x = np.concatenate([[0.0, 1e-6, 1e-3], np.linspace(0.01, 1.0, 200)]).astype(dtype)
    expected = scipy_basis(x.astype(float), angular, radial)
    value = spherical_bessel_basis(jnp.asarray(x), angular, radial)
    assert value.dtype == dtype
    np.testing.assert_allclose(value, expected, atol=tolerance * np.abs(expected).max())


def test_upward_recursion_would_be_wrong():
    """The reason for the series: from l = 0, 1 upwards, single precision has lost everything at x = 0.1 and l = 6."""
    t = np.float32(0.1 * bessel_roots(7, 6)[6, 0])
    before, current = np.sin(t) / t, np.sin(t) / t**2 - np.cos(t) / t
    for l in range(1, 6):
        before, current = current, np.float32(2 * l + 1) / t * current - before
    assert abs(current - spherical_jn(6, t)) > 1e-1 * spherical_jn(6, t)


def test_bessel_basis_is_orthonormal():
    x, w = gauss_legendre(0, 1)
    basis = np.asarray(spherical_bessel_basis(jnp.asarray(x), 7, 6))
    overlap = np.einsum("q,qln,qlm->lnm", w * x * x, basis, basis)
    np.testing.assert_allclose(overlap, np.broadcast_to(np.eye(6), (7, 6, 6)), atol=1e-11)


def test_bessel_basis_has_the_right_slope():
    x = np.linspace(0.02, 0.98, 25)
    z, l = bessel_roots(7, 6), np.arange(7)[:, None]
    expected = 2**0.5 * z * spherical_jn(l, z * x[:, None, None], derivative=True) / np.abs(spherical_jn(l + 1, z))
    slope = jax.vmap(jax.jacfwd(lambda t: spherical_bessel_basis(t, 7, 6)))(jnp.asarray(x))
    np.testing.assert_allclose(slope, expected, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("angular", [2, 7])
def test_legendre_basis_is_orthonormal_on_the_sphere(angular):
    x, w = gauss_legendre(-1, 1)
    basis = np.asarray(legendre_basis(jnp.asarray(x), angular))
    np.testing.assert_allclose(2 * np.pi * np.einsum("q,ql,qm->lm", w, basis, basis), np.eye(angular), atol=1e-12)


@pytest.mark.parametrize("power", [1, 6])
def test_envelope_ends_smoothly(power):
    @jax.jit
    def derivatives(x):
        first = jax.grad(lambda t: envelope(t, power))
        return [envelope(x, power), first(x), jax.grad(first)(x), jax.grad(jax.grad(first))(x)]

    value, slope, curvature, third = derivatives(1.0)
    assert derivatives(0.0)[0] == 1.0
    np.testing.assert_allclose([value, slope, curvature], 0, atol=1e-12)
    assert abs(third) > 1


# Triplets


def compressed():
    """Two different atoms in a skewed cell so small that atoms see several images of each other and of themselves."""
    box = np.array([[2.9, 0.0, 0.0], [0.7, 2.6, 0.0], [-0.5, 0.4, 4.1]])
    return system([[0.1, 0.0, 0.0], [1.3, 1.1, 1.9]], [14, 8], box)


def test_reverse_slots_point_back():
    sys = compressed()
    nbrs = neighbors(sys, 3.6, capacity=20)
    vectors, mask = (np.asarray(x) for x in jax.jit(displacements)(sys, nbrs))
    slots = np.asarray(jax.jit(reverse_slots)(nbrs))
    index = np.asarray(nbrs.index)
    assert (slots[~mask] == 20).all()
    for i, s in np.argwhere(mask):
        np.testing.assert_allclose(vectors[index[i, s], slots[i, s]], -vectors[i, s], atol=1e-13)


@pytest.mark.slow
def test_lists_of_simulations_give_the_same_energies():
    """Each edge's reverse is in them too: at the update, and as long as no atom has left half the skin."""
    potential, sys, skin = small((8, 14)), compressed(), 0.5
    cells = np.array([[2, -1, 3], [0, 4, -2]])
    sys = replace(sys, position=sys.position + cells @ sys.box)
    made = neighbor_list(sys, potential.cutoff, skin)
    listed, needed = jax.jit(made.update)(sys)
    assert (np.asarray(needed) <= made.capacity).all()
    params, energies = jax.jit(potential.init)(jax.random.key(0)), jax.jit(potential.atom_energies)
    step = 0.49 * skin * np.array([[0.6, -0.48, 0.64], [-0.64, 0.6, 0.48]])
    for moved in (sys, replace(sys, position=sys.position + step)):
        exact = neighbors(moved, potential.cutoff, made.capacity[0])
        exact = Neighbors(exact.index, exact.shift.astype(listed.shift.dtype))
        np.testing.assert_allclose(energies(params, moved, listed), energies(params, moved, exact), rtol=1e-12)
        assert (listed.index < 2).sum() > (exact.index < 2).sum()  # the skin holds more, which must not count


def test_a_missing_reverse_edge_is_marked():
    one_sided = Neighbors(jnp.array([[1], [2]], jnp.int32), jnp.zeros((2, 1, 3), jnp.int8))
    np.testing.assert_array_equal(reverse_slots(one_sided), [[1], [1]])


def swish(x):
    return x / (1 + np.exp(-x))


def explicit_interaction(params, message, rbf, sys, nbrs, cutoff):
    """Arrays of the update before the residual layers, by loops over edges and the triplets of each."""
    w = jax.tree.map(lambda x: np.asarray(x, float), params)
    vectors, mask = (np.asarray(x) for x in jax.jit(displacements)(sys, nbrs))
    index = np.asarray(nbrs.index)
    arriving = swish(message @ w["Dense_1"]["kernel"] + w["Dense_1"]["bias"])
    arriving = arriving * (rbf @ w["Dense_3"]["kernel"] @ w["Dense_2"]["kernel"])
    arriving = swish(arriving @ w["Dense_4"]["kernel"])
    out = np.zeros((*index.shape, arriving.shape[-1]))
    for i, s in np.argwhere(mask):
        j, to_i = index[i, s], -vectors[i, s]
        for t in np.flatnonzero(mask[j]):
            to_k, r = vectors[j, t], np.linalg.norm(vectors[j, t])
            if np.linalg.norm(to_k - to_i) < 1e-8 or r >= cutoff:
                continue
            angle = np.arccos(np.clip(to_i @ to_k / np.linalg.norm(to_i) / r, -1, 1))
            x = r / cutoff
            l = np.arange(4)
            basis = scipy_basis(np.array([x]), 4, 3)[0] * (1 - 28 * x**6 + 48 * x**7 - 21 * x**8)
            basis = basis * (np.sqrt((2 * l + 1) / 4 / np.pi) * eval_legendre(l, np.cos(angle)))[:, None]
            out[i, s] += arriving[j, t] * (basis.ravel() @ w["angle_basis_in"] @ w["angle_basis_out"])
    direct = swish(message @ w["Dense_0"]["kernel"] + w["Dense_0"]["bias"])
    return direct + swish(out @ w["Dense_5"]["kernel"])


def test_interaction_equals_loops_over_triplets():
    cutoff, sys = 3.6, compressed()
    nbrs = neighbors(sys, cutoff + 0.3)
    random, (n, k) = np.random.default_rng(0), nbrs.index.shape
    message, basis = random.normal(size=(n, k, 8)), random.normal(size=(n, k, 3))

    @jax.jit
    def prepare():
        vectors, mask = displacements(sys, nbrs)
        r = jnp.linalg.norm(vectors, axis=-1)
        x = jnp.minimum(r / cutoff, 1.0)
        cut = jnp.where(r < cutoff, envelope(x, 6), 0.0)[..., None, None]
        legendre = triplet_basis(vectors / r[..., None], 4)
        source = (jnp.where(mask, nbrs.index, 0), reverse_slots(nbrs))
        return basis * (r < cutoff)[..., None], cut * spherical_bessel_basis(x, 4, 3), legendre, source

    inputs = (message, *prepare())
    rbf, mask = np.asarray(inputs[1]), np.asarray(nbrs.index) < n
    module = Interaction(angle_width=5, basis_width=4)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    variables = jax.tree.map(lambda x: 0.3 * random.normal(size=x.shape), shapes)

    @jax.jit
    def apply(variables, *inputs):
        return module.apply(variables, *inputs, capture_intermediates=lambda m, _: m.name == "Residual_0", mutable=True)

    _, state = apply(variables, *inputs)
    value = np.asarray(state["intermediates"]["Residual_0"]["__call__"][0])
    before = explicit_interaction(variables["params"], message, rbf, sys, nbrs, cutoff)
    w = jax.tree.map(lambda x: np.asarray(x, float), variables["params"]["Residual_0"])
    y = swish(before @ w["Dense_0"]["kernel"] + w["Dense_0"]["bias"])
    expected = before + swish(y @ w["Dense_1"]["kernel"] + w["Dense_1"]["bias"])
    assert mask.sum() > 20
    np.testing.assert_allclose(value[mask], expected[mask], atol=1e-11)


@pytest.mark.parametrize(("blocks", "sees_angles"), [pytest.param(0, False, marks=pytest.mark.slow), (1, True)])
def test_angles_are_seen_where_distances_alone_say_nothing(blocks, sees_angles):
    """Bending a molecule whose ends are out of each other's sight."""
    potential = small(blocks=blocks)
    params, compiled = jax.jit(potential.init)(jax.random.key(0)), jax.jit(potential.energy)

    def energy(angle):
        sys = system([[0, 0, 0], [2.5, 0, 0], [2.5 * np.cos(angle), 2.5 * np.sin(angle), 0]], [14, 14, 14])
        return float(compiled(params, sys, neighbors(sys, 3.6)))

    assert (abs(energy(1.8) - energy(2.6)) > 1e-5) == sees_angles


@pytest.mark.slow
def test_collinear_atoms_have_finite_derivatives():
    potential = small(blocks=1)
    params, both = jax.jit(potential.init)(jax.random.key(0)), energy_and_forces(potential)
    sys = system([[0, 0, -2.0], [0, 0, 0], [0, 0, 2.0], [0, 0, 4.0]], [14] * 4)
    nbrs = neighbors(sys, 3.6)
    _, force = jax.jit(both)(params, sys, nbrs)
    assert np.isfinite(force).all()
    np.testing.assert_allclose(force[:, :2], 0, atol=1e-12)
    grad = jax.jit(jax.grad(lambda p: (both(p, sys, nbrs)[1] ** 2).sum()))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grad))
    assert max(np.abs(x).max() for x in jax.tree.leaves(grad)) > 0


# Size and arguments


def test_default_size():
    """The published network has a file of 501 kB in single precision: 1.2e5 parameters."""
    params = jax.eval_shape(dimenet((14,), 5.0).init, jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(params))
    assert count == pytest.approx(1.22e5, rel=0.02)
    more = jax.eval_shape(dimenet((1, 8, 14), 5.0).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(more)) == count + 2 * 16


def test_starting_parameters():
    """Orthogonal matrices of variance 2 / (inputs + outputs), vectors of length 1, embeddings of variance 1."""
    init = jax.jit(dimenet((8, 14), 4.0, width=12, blocks=1, species_width=200).init)
    params, other = init(jax.random.key(0)), init(jax.random.key(1))
    seen = set()
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        name, x = path[-1].key, np.asarray(x)
        assert x.dtype == np.float32
        if name == "bias":
            assert (x == 0).all()
        elif name == "frequency":
            np.testing.assert_allclose(x, np.pi * np.arange(1, 7), rtol=1e-6)
        elif name == "embedding":  # 400 numbers: the error of a uniform variable's variance is 4.5 %
            assert x.var() == pytest.approx(1, abs=0.2)
            assert np.abs(x).max() < 3**0.5
        else:
            a, b = x.shape
            x = x if a >= b else x.T
            product = x.T @ x
            np.testing.assert_allclose(product, product[0, 0] * np.eye(min(a, b)), atol=1e-5 * product[0, 0])
            if min(a, b) > 1:
                assert x.var() == pytest.approx(2 / (a + b), rel=1e-4)
            else:
                assert product[0, 0] == pytest.approx(1, rel=1e-5)
            seen.add(x.ravel()[:2].tobytes())
    assert len(seen) == sum(x.ndim == 2 for x in jax.tree.leaves(params)) - 1  # no two alike; not counting embeddings
    same = jax.tree.map(lambda x, y: bool((x == y).all()), params, other)
    assert {path[-1].key for path, s in jax.tree_util.tree_leaves_with_path(same) if s} == {"bias", "frequency"}


def test_species_are_distinguished():
    potential = small((8, 14))
    params, energy = jax.jit(potential.init)(jax.random.key(0)), jax.jit(potential.energy)
    energies = []
    for pair in [(8, 8), (8, 14), (14, 14)]:
        sys = system([[0, 0, 0], [2.0, 0, 0]], pair)
        energies.append(float(energy(params, sys, neighbors(sys, 3.6))))
    assert np.ptp(energies) > 1e-4
    assert len({round(e, 8) for e in energies}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"species": ()}, "at least one"),
        ({"species": (0,)}, "1 to 118"),
        ({"angular": 1}, "angular"),
        ({"width": 0}, "width"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        dimenet(**{"species": (14,), "cutoff": 5.0} | arguments)
