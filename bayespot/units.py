"""Units as factors to the internal system eV, Å, amu, e; multiply to enter it, divide to leave it.

The unit of time follows from the others, Å·sqrt(amu/eV) = 10.1805 fs, and is the one of ASE. Physical constants
are CODATA 2014, the set that ASE uses by default, so that both agree to all digits.

Example:
    >>> from bayespot import units
    >>> round(300 * units.kB, 6)  # kT of 300 K in eV
    0.025852
"""

_JOULE_PER_EV = 1.6021766208e-19
_KG_PER_AMU = 1.660539040e-27

eV = 1.0
angstrom = 1.0
amu = 1.0
e = 1.0

nm = 10.0
bohr = 0.52917721067
hartree = 27.21138602
kB = 8.6173303e-5
"""Boltzmann constant [eV/K]."""

kJ_per_mol = 1000.0 / _JOULE_PER_EV / 6.022140857e23
kcal_per_mol = 4.184 * kJ_per_mol

second = (_JOULE_PER_EV / _KG_PER_AMU) ** 0.5 * 1e10
fs = 1e-15 * second
"""One femtosecond [Å·sqrt(amu/eV)]."""
ps = 1e-12 * second
ns = 1e-9 * second

GPa = 1e9 / _JOULE_PER_EV * 1e-30
"""One gigapascal [eV/Å³]."""
bar = 1e-4 * GPa

g_per_cm3 = 1e-27 / _KG_PER_AMU
"""One gram per cubic centimetre [amu/Å³]."""

coulomb = hartree * bohr
"""Coulomb constant e²/(4πε₀) [eV·Å]."""
