"""The command line and the quickstart behind it, at the smallest size that goes the whole road."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import bayespot as bp
from bayespot import report
from bayespot.cli import main
from bayespot.errors import Status
from bayespot.quickstart import (
    FAST,
    FAST_FILES,
    FILES,
    FULL,
    Settings,
    ensemble_posterior,
    file_material,
    first_shell,
    paced,
    quickstart,
)
from bayespot.records.system import System, from_ase
from bayespot.tree import replace

TINY = Settings(
    frames=40, spacing=20, members=8, ensemble_steps=400, chains=2, draws=8, simulated=2, burn_in=10, thin=3, runs=8,
    run=0.28, equilibration=0.02, every=5, truth=2.24, truth_runs=8, cells=1, force_noise=0.02, first_step=2e-5,
    last_step=1e-5, channels=2, hidden=(16,),
)  # fmt: skip


@pytest.fixture(scope="module")
def results():
    return quickstart(3, TINY, progress=False)


@pytest.mark.slow
def test_the_whole_road_leaves_its_results(results, tmp_path):
    _, posteriors, true = results
    report.write(tmp_path, *results)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert set(found) == {"deep ensemble", "pSGLD", "teacher"}
    for name, samples in (("deep ensemble", 8), ("pSGLD", 16)):
        part = found[name]
        assert part["samples"] == samples == len(posteriors[name].samples)
        assert part["simulated"] == 8 == len(posteriors[name].simulated)
        assert 0 <= part["stable_fraction"] <= 1
        assert set(part["intervals"]) == set(true) == set(part["coverage_of_teacher"])
        inside = posteriors[name].intervals["energy"]
        assert part["coverage_of_teacher"]["energy"] == float(inside.lower <= true["energy"] <= inside.upper)
    assert found["pSGLD"]["rhat"] >= 0.9
    assert "truth" in (text := report.text(*results))
    assert f"{float(true['energy']):.5g}" in text
    assert "R-hat ≤" in text
    tree = xr.open_datatree(tmp_path / "results.nc", engine="h5netcdf")
    predictive = tree["pSGLD/posterior_predictive"]
    assert predictive["rdf"].dims == ("chain", "draw", "rdf_coordinate")
    assert "lp" in tree["pSGLD/sample_stats"]
    for figure in ("rdf", "adf", "reliability", "learning", "parity"):
        assert (tmp_path / f"deep_ensemble_{figure}.png").stat().st_size > 5000


@pytest.mark.slow
def test_failed_runs_are_marked_and_carry_no_values(results):
    p = results[1]["pSGLD"]
    status = np.zeros_like(p.observed["energy"].status)
    status[3, 0] = Status.UNSTABLE
    observed = {n: replace(o, status=status) for n, o in p.observed.items()}
    found = report.datatree({"pSGLD": p._replace(observed=observed)})["pSGLD/posterior_predictive"]
    failed = np.arange(8).reshape(2, 4) == 3
    np.testing.assert_array_equal(found["status"], np.where(failed, Status.UNSTABLE, Status.OK))
    np.testing.assert_array_equal(np.isnan(found["rdf"]), np.repeat(failed[..., None], 60, -1))
    expected = np.asarray(observed["energy"].value).mean(1).reshape(2, 4)
    np.testing.assert_allclose(found["energy"].values[~failed], expected[~failed])


def test_angles_are_counted_within_the_first_shell():
    from ase.build import bulk

    crystal = from_ase(bulk("Si", "diamond", a=5.431))
    assert first_shell(crystal, 5.0) == pytest.approx(1.4 * 5.431 * 3**0.5 / 4)
    padded = System(jnp.zeros((9, 3)).at[:2].set(crystal.position), jnp.zeros(9, int).at[:2].set(14), crystal.box)
    assert first_shell(padded, 5.0) == pytest.approx(1.4 * 5.431 * 3**0.5 / 4)


def test_files_with_light_atoms_get_a_shorter_time_step_and_as_many_steps():
    silane = System(jnp.zeros((6, 3)), jnp.array([14, 1, 1, 1, 1, 0]), jnp.eye(3))
    s = Settings()
    light, heavy = paced(s, silane), paced(s, replace(silane, species=jnp.full(6, 79)))
    assert light.time_step == pytest.approx(4e-4 * 1.008**0.5)
    assert (light.frames_kept, light.run / light.time_step) == (s.frames_kept, pytest.approx(s.run / s.time_step))
    assert heavy == s
    assert light.equilibration == s.equilibration  # memory is lost in times, not in steps


@pytest.mark.parametrize("s", [FULL, FAST, FILES, FAST_FILES, TINY])
def test_blocks_of_the_runs_are_longer_than_the_longest_lag_of_the_displacements(s):
    assert s.frames_kept // 4 > max(2, s.frames_kept // 10)


def test_the_teacher_is_asked_at_a_temperature_between_those_of_the_data():
    s = Settings()
    assert min(s.teacher_temperatures) < s.temperature < max(s.teacher_temperatures)


def test_files_are_read_and_split(tmp_path, key):
    from ase.build import bulk
    from ase.calculators.emt import EMT
    from ase.io import write

    frames = []
    for n in range(30):
        atoms = bulk("Cu", cubic=True) * (1, 1, 1 + n % 2)
        atoms.rattle(0.05, seed=n)
        atoms.calc = EMT()
        atoms.get_forces()
        frames.append(atoms)
    write(tmp_path / "cu.extxyz", frames)
    material = file_material(key, TINY, tmp_path / "cu.extxyz", None)
    sizes = [len(x) for x in (material.train, material.validation, material.test)]
    assert sum(sizes) == 30
    assert sizes[2] == round(30 / 7)
    assert material.teacher is None
    assert int((material.start.species > 0).sum()) == np.bincount(material.train.atom_counts).argmax()
    s = TINY._replace(members=2, ensemble_steps=20)
    potential = bp.lennard_jones(sigma=2.3, epsilon=0.2, cutoff=s.cutoff)  # compiles fast
    target = bp.force_matching(potential, material.train, bp.flat(), bp.Noise(0.001, 0.1))
    members = ensemble_posterior(jax.random.key(1), target, material, s, progress=False)
    assert np.isfinite(members.history["validation"][:, -1]).all()  # they stop early on the validation frames


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quickstart", "--data", "nowhere.xyz"], "no such file: nowhere.xyz"),
        (["quickstart", "--test", "nowhere.xyz"], "--test needs --data"),
        ([], "required: command"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_bad_data_end_with_a_message_not_a_traceback(tmp_path, capsys):
    (tmp_path / "empty.extxyz").write_text("")
    assert main(["quickstart", "--data", str(tmp_path / "empty.extxyz"), "--out", str(tmp_path / "out")]) == 1
    assert "empty.extxyz" in capsys.readouterr().err
