"""Units against those of ASE (the same constants) and against CODATA of scipy (newer constants)."""

import ase.units
import pytest
import scipy.constants as si

from bayespot import units


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("eV", ase.units.eV),
        ("angstrom", ase.units.Angstrom),
        ("amu", 1.0),  # ASE's masses are numbers of amu
        ("e", 1.0),
        ("nm", ase.units.nm),
        ("bohr", ase.units.Bohr),
        ("hartree", ase.units.Hartree),
        ("kB", ase.units.kB),
        ("kJ_per_mol", ase.units.kJ / ase.units.mol),
        ("kcal_per_mol", ase.units.kcal / ase.units.mol),
        ("second", ase.units.second),
        ("fs", ase.units.fs),
        ("ps", 1000 * ase.units.fs),
        ("ns", 1e6 * ase.units.fs),
        ("GPa", ase.units.GPa),
        ("bar", ase.units.bar),
        ("g_per_cm3", 1e-27 * ase.units.kg),
        ("coulomb", ase.units.Hartree * ase.units.Bohr),
    ],
)
def test_same_as_ase(name, expected):
    """Rounding of the published constants: ten digits, of which products lose one."""
    assert getattr(units, name) == pytest.approx(expected, rel=2e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("kB", si.k / si.e),
        ("bohr", si.physical_constants["Bohr radius"][0] * 1e10),
        ("hartree", si.physical_constants["Hartree energy in eV"][0]),
        ("kJ_per_mol", 1000 / si.N_A / si.e),
        ("kcal_per_mol", 4184 / si.N_A / si.e),
        ("fs", 1e-15 * (si.e / si.atomic_mass) ** 0.5 * 1e10),
        ("GPa", 1e9 * 1e-30 / si.e),
        ("bar", 1e5 * 1e-30 / si.e),
        ("g_per_cm3", 1e-27 / si.atomic_mass),
        ("coulomb", si.e / (4 * si.pi * si.epsilon_0) * 1e10),
    ],
)
def test_close_to_newer_constants(name, expected):
    """CODATA 2014 and newer sets differ by 6e-7 in kB and less elsewhere."""
    assert getattr(units, name) == pytest.approx(expected, rel=1e-6)


def test_the_unit_of_time():
    """An atom of 1 amu under 1 eV/Å gains 1 Å/t per t, where t is 10.1805 fs."""
    assert 1 / units.fs == pytest.approx(10.180506, rel=1e-6)


def test_kinetic_energy():
    """Argon at 300 K: the mean square velocity 3 kT/m is that of the textbook, 432.8 m/s."""
    velocity = (3 * 300 * units.kB / 39.948) ** 0.5
    metres_per_second = velocity * 1e-10 / (1 / units.second)
    assert metres_per_second == pytest.approx(432.8, abs=0.1)
