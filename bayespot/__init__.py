"""Credible intervals for molecular simulation with neural-network potentials.

The public names, in the order in which data flow through them; each is imported when it is first used, so that
``import bayespot`` costs next to nothing on top of JAX and touches no backend.
"""

import importlib
from typing import Any

_NAMES = {
    "records.system": "System system from_ase to_ase masses volume",
    "records.neighbors": "Neighbors neighbors displacements",
    "records.dataset": "Dataset dataset with_cutoff",
    "records.ase_frames": "from_ase_frames",
    "records.mapping": "Mapping mapping centre_of_mass slices coarse_grain",
    "records.statistics": "reference_energies force_scale shortest_distance summary",
    "records.split": "split split_by_group leave_group_out",
    "io": "read save load",
    "potentials.potential": "Potential add energy_and_forces energy_forces_stress forces stress",
    "potentials.build": "build",
    "potentials.classical": "lennard_jones stillinger_weber",
    "potentials.pair_spline": "pair_spline",
    "potentials.repulsion": "repulsion",
    "potentials.bonded": "Topology topology bonded",
    "potentials.boltzmann_inversion": "bonded_from_data",
    "potentials.descriptor_mlp": "descriptor_mlp",
    "potentials.dimenet": "dimenet",
    "potentials.scale_shift": "scale_shift",
    "potentials.combination": "combination",
    "potentials.temperature_dependent": "temperature_dependent",
    "potentials.teacher": "label add_noise",
    "inference.priors": "prior flat normal scaled_normal scaled_student_t",
    "targets.force_matching": "Noise force_matching",
    "targets.reference_run": "reference_run",
    "targets.difftre": "Measurement difftre",
    "targets.relative_entropy": "relative_entropy",
    "targets.fused": "fused",
    "targets.shallow_ensemble": "shallow_ensemble split_heads",
    "targets.numpyro": "numpyro_target numpyro_potential site_values",
    "inference.target": "Target LeastSquares initial",
    "inference.subset": "Subset subset",
    "inference.with_frames": "with_frames",
    "inference.informed_subspace": "InformedSubspace informed_subspace",
    "inference.algorithm": "Algorithm",
    "inference.schedules": "constant polynomial cosine cyclical",
    "inference.preconditioner": "identity fixed rms",
    "inference.muon": "muon",
    "inference.optimise": "optimise",
    "inference.anchored": "anchored",
    "inference.alternate": "alternate",
    "inference.control_variates": "control_variates",
    "inference.full_data": "full_log_density",
    "inference.sgld": "sgld",
    "inference.sghmc": "sghmc",
    "inference.sgnht": "sgnht",
    "inference.replica_exchange": "replica_exchange",
    "inference.mh_corrected": "sggmc amagold",
    "inference.blackjax": "from_blackjax nuts hmc mclmc",
    "inference.noise_bias": "GradientNoise gradient_noise variance_inflation largest_step",
    "inference.infer": "infer",
    "inference.minibatches": "bootstrap",
    "inference.gauss_newton": "gauss_newton",
    "inference.laplace": "laplace",
    "inference.swag": "swag",
    "inference.diagnostics": "rhat ess ess_tail mcse",
    "records.posterior": "PosteriorSamples as_samples weights healthy concatenate",
    "records.trajectory": "Frame Trajectory",
    "records.reweighted": "Reweighted",
    "simulation.ensemble": "Ensemble nve nvt_langevin nvt_nose_hoover npt_nose_hoover",
    "simulation.npt_langevin": "npt_langevin",
    "simulation.simulate": "simulate propagate",
    "simulation.reweight": "reweight",
    "trajectory_files": "write_trajectory read_trajectory thin",
    "observables.observable": "Observable observe",
    "observables.structure": "rdf shell_averages adf coordination tetrahedral_order",
    "observables.thermodynamics": "temperature energy_per_atom kinetic_energy pressure stress_tensor density",
    "observables.fluctuations": "heat_capacity compressibility thermal_expansion",
    "observables.elasticity": "elastic_constants",
    "observables.dynamics": "msd diffusion vacf vibrational_density_of_states",
    "observables.collective_variables": "distance angle dihedral dihedrals",
    "observables.populations": "distribution population",
    "observables.free_energy": "zwanzig bar free_energy_profile free_energy_surface FreeEnergyDifference",
    "observables.frame_weights": "mbar",
    "observables.equilibration": "Equilibration equilibration",
    "records.interval": "Interval Observed table",
    "uq.intervals": "interval",
    "uq.variance": "block_independence",
    "uq.coverage_study": "CoverageStudy coverage_study",
    "uq.error_budget": "ErrorBudget error_budget",
    "uq.predict": "Prediction predict prediction_errors error_table atom_uncertainty",
    "uq.posterior_predictive": "PosteriorPredictive posterior_predictive",
    "uq.arviz": "to_arviz",
    "uq.diagnose": "Diagnosis diagnose",
    "uq.calibration": "Reliability z_scores coverage pit calibration_table",
    "uq.resampling": "Estimate",
    "uq.ence": "BinnedErrors binned_errors",
    "uq.scores": "Calibration calibration compare_calibration calibration_report",
    "uq.recalibration": "Recalibration recalibration_factor recalibrate recalibrate_prediction",
    "uq.conformal": "Conformal conformal_factor conformal_interval",
    "uq.predictive_check": "PredictiveCheck predictive_check held_out_check",
    "uq.selection": "Selection select frame_uncertainty",
    "uq.calculator": "calculator",
    "plots": "plot_interval plot_reliability plot_pit plot_binned_errors plot_check "
    "plot_rank plot_learning plot_parity",
    "errors": "Status DataError FailedSamples UncertaintyWarning",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
_MODULES = ("units",)

__all__ = [*_HOME, *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]  (names are given once, above)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"bayespot.{name}")
    if name not in _HOME:
        raise AttributeError(f"bayespot has no name {name!r}. See dir(bayespot).")
    value = getattr(importlib.import_module(f"bayespot.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *globals()])
