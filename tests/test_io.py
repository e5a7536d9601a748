"""Reading: where labels come from, their signs and shapes, and what is refused. Files are written by hand or by ASE."""

import gzip
import re
from collections import Counter

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.neighborlist import neighbor_list

from bayespot.errors import DataError
from bayespot.io import read
from bayespot.records.ase_frames import from_ase_frames
from bayespot.records.statistics import shortest_distance

LATTICE = 'Lattice="5 0 0 0 5 0 0 0 5"'
FRAME = f"""2
{LATTICE} Properties=species:S:1:pos:R:3:forces:R:3 energy=-3.5 pbc="T T T" config_type=solid
Si 0 0 0 0.1 0.2 0.3
Si 1.5 1.5 1.5 -0.1 -0.2 -0.3
"""


@pytest.fixture
def write(tmp_path):
    def writer(text, name="data.extxyz"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return writer


def refused(path, *words, frame=0, **keys) -> str:
    """The message with which a file is refused; it names the file, the frame and every given word."""
    with pytest.raises(DataError) as caught:
        read(path, 3.0, **keys)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert caught.value.frame == frame
    if frame is not None:
        assert f"frame {frame}" in message
    for word in words:
        assert word in message
    return message


def test_labels_of_the_calculator(write):
    data = read(write(FRAME), 3.0)
    np.testing.assert_array_equal(data.energy, [-3.5])
    np.testing.assert_array_equal(data.forces[0], [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]])
    assert data.has_energy.tolist() == data.has_forces.tolist() == [True]
    assert data.has_stress.tolist() == [False]
    assert data.group_names == ("solid",)
    assert data.cutoff == 3.0
    # Two atoms at 1.5·√3 = 2.598 Å; no image of either is nearer than 5 Å or within 3 Å of the other.
    assert data.neighbors.index.tolist() == [[[1], [0]]]


def test_compressed_file(tmp_path):
    path = tmp_path / "data.extxyz.gz"
    path.write_bytes(gzip.compress((FRAME * 2).encode()))
    assert len(read(path, 3.0)) == 2
    path.write_bytes(gzip.compress((FRAME * 200).encode())[:-30])
    with pytest.raises(DataError, match="truncated"):
        read(path, 3.0)


def test_another_format_of_ase(tmp_path):
    atoms = bulk("Cu") * (2, 1, 1)
    atoms.rattle(0.1, seed=1)
    atoms.calc = EMT()
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)
    ase.io.write(tmp_path / "data.traj", atoms)
    data = read(tmp_path / "data.traj", 3.0)
    np.testing.assert_allclose(data.energy, [energy], rtol=1e-14)
    np.testing.assert_allclose(data.forces[0], forces, atol=1e-14)
    np.testing.assert_allclose(data.stress[0], stress, atol=1e-14)


def test_stress_has_the_sign_of_a_volume_derivative():
    """σ = (1/V) dE/dε for a homogeneous strain ε: the label against a finite difference of EMT energies."""
    atoms = bulk("Cu", a=3.5)
    atoms.calc = EMT()
    atoms.get_stress()
    data = from_ase_frames([atoms], 3.0)
    energies = []
    for strain in (-1e-5, 1e-5):
        other = atoms.copy()
        other.set_cell(atoms.cell * (1 + strain), scale_atoms=True)
        other.calc = EMT()
        energies.append(other.get_potential_energy())
    trace = (energies[1] - energies[0]) / 2e-5 / atoms.get_volume()
    assert trace < 0  # compressed copper pushes outward
    np.testing.assert_allclose(np.trace(data.stress[0]), trace, rtol=1e-6)  # error of the difference is of order ε²


def test_order_of_preference(write):
    both = FRAME.replace("energy=-3.5", "energy=-3.5 REF_energy=-7.0 dft=-9.0").replace(
        "forces:R:3", "forces:R:3:REF_forces:R:3"
    )
    both = both.replace("0.1 0.2 0.3\n", "0.1 0.2 0.3 1 1 1\n").replace("-0.3\n", "-0.3 -1 -1 -1\n")
    path = write(both)
    data = read(path, 3.0)
    assert data.energy.tolist() == [-7.0]
    assert data.forces[0].tolist() == [[1, 1, 1], [-1, -1, -1]]
    data = read(path, 3.0, energy_key="energy", forces_key="forces")
    assert data.energy.tolist() == [-3.5]
    assert data.forces[0, 0].tolist() == [0.1, 0.2, 0.3]
    assert read(path, 3.0, energy_key="dft").energy.tolist() == [-9.0]


VOIGT = [[1, 6, 5], [6, 2, 4], [5, 4, 3]]  # xx yy zz yz xz xy = 1 … 6


@pytest.mark.parametrize("text", ["1 2 3 4 5 6", "1 6 5 6 2 4 5 4 3"])
def test_reference_stress_in_six_or_nine_numbers(write, text):
    data = read(write(FRAME.replace("energy=", f'REF_stress="{text}" energy=')), 3.0)
    assert data.stress[0].tolist() == VOIGT
    assert data.has_stress.tolist() == [True]


@pytest.mark.parametrize("key", [None, "REF_virials", "my_virial"])
def test_virials_become_stress(write, key):
    name = key or "REF_virials"
    data = read(write(FRAME.replace("energy=", f'{name}="1 6 5 6 2 4 5 4 3" energy=')), 3.0, stress_key=key)
    np.testing.assert_allclose(data.stress[0], -np.array(VOIGT) / 125.0, rtol=1e-15)


def test_stress_without_volume_is_left_out(write):
    text = FRAME.replace("energy=", 'REF_stress="1 2 3 4 5 6" energy=').replace('"T T T"', '"T T F"')
    assert read(write(text), 3.0).has_stress.tolist() == [False]


def test_asymmetric_stress_is_refused(write):
    refused(write(FRAME.replace("energy=", 'REF_stress="1 2 3 4 5 6 7 8 9" energy=')), "REF_stress", "symmetric")


def test_missing_labels_are_masked(write):
    data = read(write(FRAME + FRAME.replace("energy=-3.5", "") + FRAME.replace("forces", "something")), 3.0)
    assert data.has_energy.tolist() == [True, False, True]
    assert data.has_forces.tolist() == [True, True, False]
    assert data.energy.tolist() == [-3.5, 0.0, -3.5]
    assert not data.forces[2].any()


def test_all_labels_missing_is_refused(write):
    text = FRAME.replace("energy=", "dft_energy=").replace("forces", "dft_forces")
    refused(write(text), "energy or forces", "dft_energy", "dft_forces", "energy_key", frame=None)
    assert read(write(text), 3.0, energy_key="dft_energy", forces_key="dft_forces").energy.tolist() == [-3.5]


def test_forces_are_not_changed_by_constraints():
    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.0]])
    atoms.calc = EMT()
    forces = atoms.get_forces()
    atoms.calc = SinglePointCalculator(atoms, forces=forces)
    atoms.set_constraint(FixAtoms([0]))
    assert not atoms.get_forces()[0].any()  # what ASE's method would give
    np.testing.assert_array_equal(from_ase_frames([atoms], 3.0).forces[0], forces)


def test_results_of_other_positions_are_refused():
    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.0]])
    atoms.calc = EMT()
    atoms.get_forces()
    atoms.positions[1, 2] = 2.1
    with pytest.raises(DataError, match=r"memory, frame 0: .*energy belongs to other positions"):
        from_ase_frames([atoms], 3.0)


def test_nan_and_infinite_labels(write):
    refused(write(FRAME + FRAME.replace("0.1 0.2 0.3\n", "0.1 nan 0.3\n", 1)), "forces", "NaN", "masked", frame=1)
    refused(write(FRAME.replace("-3.5", "inf")), "energy", "inf")
    refused(write(FRAME.replace("energy=", 'REF_stress="1 2 3 nan 5 6" energy=')), "REF_stress", "NaN")


def test_nan_position(write):
    refused(write(FRAME.replace("Si 0 0 0", "Si nan 0 0")), "finite")


def test_missing_lattice_with_pbc(write):
    refused(write(FRAME.replace(LATTICE, "")), "pbc", "a, b, c", "Lattice")


def test_slab_needs_two_lattice_vectors(write):
    slab = FRAME.replace(LATTICE, 'Lattice="5 0 0 0 5 0 0 0 0"')
    refused(write(slab), "along c", "Lattice")
    data = read(write(slab.replace('"T T T"', '"T T F"')), 3.0)
    assert data.system.box[0].tolist() == [[5, 0, 0], [0, 5, 0], [0, 0, 0]]


@pytest.mark.parametrize("symbol", ["Qq", "X"])
def test_unknown_element(write, symbol):
    refused(write(FRAME + FRAME.replace("Si 1.5", f"{symbol} 1.5")), "unknown element", frame=1)


@pytest.mark.parametrize("lattice", ["5 0 0 5 0 0 0 0 5", "5 0 0 0 5 0 1e-9 0 1e-9", "5 0 0 0 5 0 5 5 1e-3"])
def test_cell_without_volume(write, lattice):
    refused(write(FRAME.replace(LATTICE, f'Lattice="{lattice}"')), "Lattice", "frame 0")


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_empty_file(write, text):
    with pytest.raises(DataError, match=r"data\.extxyz.*(empty|none)"):
        read(write(text), 3.0)


def test_missing_file(tmp_path):
    refused(tmp_path / "absent.extxyz", "no such file", frame=None)


@pytest.mark.parametrize("cut", [4, 24, len(FRAME) - 1, len(FRAME) - 4, len(FRAME) - 30, 40])
def test_truncated_file(write, cut):
    """Cut within the second frame, in a line, at its end, in the header, in the count of atoms."""
    refused(write(FRAME + FRAME[:-cut]), "truncated", frame=1)


def test_text_after_a_blank_line_is_not_lost(write):
    refused(write(FRAME + "\n" + FRAME), "blank line", "line 6 on", frame=1)
    assert len(read(write(FRAME + FRAME + "\n\n"), 3.0)) == 2


def test_mixed_keys(write):
    message = refused(write(FRAME * 2 + FRAME.replace("energy=", "REF_energy=") * 2), "energy_key", frame=2)
    assert re.search(r"energy in frames 0, 1 and REF_energy in frames 2, 3", message)


def test_an_explicit_key_settles_mixed_keys(write):
    path = write(FRAME + FRAME.replace("energy=", "REF_energy="))
    data = read(path, 3.0, energy_key="REF_energy")
    assert data.has_energy.tolist() == [False, True]


def test_frames_of_reference_stress_and_virials_go_together(write):
    text = FRAME.replace("energy=", 'REF_stress="1 2 3 4 5 6" energy=')
    data = read(
        write(text + text.replace("REF_stress", "REF_virials").replace("1 2 3 4 5 6", "-1 -2 -3 -4 -5 -6")), 3.0
    )
    np.testing.assert_allclose(data.stress[0], data.stress[1] * 125.0, rtol=1e-15)


def test_overlapping_atoms(write):
    refused(write(FRAME + FRAME.replace("Si 1.5 1.5 1.5", "Si 0 0 0.05")), "atoms 0 and 1 overlap", "0.05 Å", frame=1)


def test_overlap_with_an_image(write):
    refused(write(FRAME.replace("Si 1.5 1.5 1.5", "Si 5 5 4.97")), "overlap", "0.03 Å")
    assert len(read(write(FRAME.replace("Si 1.5 1.5 1.5", "Si 5 5 4.85")), 3.0)) == 1


def test_forces_of_the_wrong_shape(write):
    flat = FRAME.replace("forces:R:3", "REF_forces:R:2").replace("0.1 0.2 0.3\n", "0.1 0.2\n").replace(" -0.3\n", "\n")
    refused(write(flat), "REF_forces", "(2, 3)", "(2, 2)")


def test_labels_that_are_no_numbers(write):
    refused(write(FRAME.replace("-3.5", "none")), "energy", "numbers", "none")
    refused(write(FRAME.replace("-3.5", '"1 2 3"')), "energy", "(3,)")


def test_explicit_key_that_is_absent(write):
    refused(write(FRAME), "energy_key 'dft'", "energy", "forces", "config_type", frame=None, energy_key="dft")
    refused(write(FRAME), "stress_key 'virial'", frame=None, stress_key="virial")
    refused(write(FRAME), "group_key 'kind'", "config_type", frame=None, group_key="kind")


def test_groups(write):
    path = write(FRAME + FRAME.replace("solid", "melt") + FRAME.replace("config_type=solid", "") + FRAME)
    data = read(path, 3.0)
    assert data.group_names == ("solid", "melt", "unnamed")
    assert data.group.tolist() == [0, 1, 2, 0]
    assert read(path, 3.0, group_key=None).group_names == ("all",)


def test_frames_keep_their_number_in_the_file(write):
    path = write("".join(FRAME.replace("-3.5", str(-k)) for k in range(6)))
    assert read(path, 3.0, index="1::2").frame.tolist() == [1, 3, 5]
    assert read(path, 3.0, index=-1).frame.tolist() == [5]
    assert read(path, 3.0, index=slice(2, 4)).energy.tolist() == [-2, -3]
    refused(path, "6 frames", "9", frame=None, index=9)
    refused(path, "none of 6", frame=None, index="7:")


def test_several_files(write):
    first, second = (
        write(FRAME, "a.extxyz"),
        write(FRAME.replace("energy", "REF_energy").replace("solid", "melt"), "b.xyz"),
    )
    data = read([first, second], 3.0)
    assert data.frame.tolist() == [0, 0]
    assert data.energy.tolist() == [-3.5, -3.5]
    assert data.group_names == ("solid", "melt")
    assert str(first) in data.source
    assert str(second) in data.source
    second.write_text(FRAME.replace("-3.5", "nan"))
    with pytest.raises(DataError, match=r"b\.xyz, frame 0: energy"):
        read([first, second], 3.0)


def test_a_list_without_frames_is_refused():
    with pytest.raises(DataError, match="at least one frame"):
        from_ase_frames([], 3.0)
    with pytest.raises(DataError, match=r"memory, frame 0: .*at least one atom"):
        from_ase_frames([Atoms()], 3.0)


def test_real_silicon(data_folder):
    """Counts of the data set's documentation; labels and distances against ASE's own reading of the same file."""
    path = data_folder / "dft_mlearn" / "Si_train.extxyz"
    data = read(path, 4.0, group_key="group")
    names = [data.group_names[g] for g in data.group]
    assert Counter(names) == {"AIMD-NVT": 90, "Vacancy": 57, "Elastic": 55, "Surface": 12}
    assert len(data) == 214
    assert data.species == (14,)
    assert (data.atom_counts.min(), data.atom_counts.max()) == (12, 96)
    assert data.has_energy.all()
    assert data.has_forces.all()
    assert data.has_stress.all()
    frames = ase.io.read(path, ":")
    shortest = min(neighbor_list("d", a, 2.5).min(initial=np.inf) for a in frames)
    assert shortest_distance(data) == pytest.approx(shortest, rel=1e-12)
    for k in (0, 100, 213):
        n = len(frames[k])
        assert data.atom_counts[k] == n
        assert float(data.energy[k]) == frames[k].get_potential_energy()
        np.testing.assert_array_equal(data.forces[k, :n], frames[k].get_forces())
        np.testing.assert_allclose(data.stress[k], frames[k].get_stress(voigt=False), rtol=1e-14, atol=1e-16)


def test_real_stress_follows_the_volume(data_folder):
    """Compressed crystals push outward: among the strained crystals tr σ rises with the volume per atom."""
    data = read(data_folder / "dft_mlearn" / "Si_train.extxyz", 3.0, group_key="group")
    elastic = data[np.asarray(data.group) == data.group_names.index("Elastic")]
    volume = np.abs(np.linalg.det(elastic.system.box)) / elastic.atom_counts
    trace = np.trace(np.asarray(elastic.stress), axis1=1, axis2=2)
    rest = volume.mean()
    assert (volume < 0.97 * rest).sum() > 3
    assert (volume > 1.05 * rest).sum() > 3
    assert (trace[volume < 0.97 * rest] < 0).all()
    assert (trace[volume > 1.05 * rest] > 0).all()
    assert np.corrcoef(volume, trace)[0, 1] > 0.9
