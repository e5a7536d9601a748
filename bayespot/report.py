"""The quickstart's results for people: tables, files, figures."""

import json
from pathlib import Path

import numpy as np

import bayespot as bp

ABOVE = 0.1
"""Bins of a distribution count for coverage where the truth exceeds this share of its mean level."""


def counted(name: str, true: np.ndarray) -> np.ndarray:
    """Which values of an observable count: those of a distribution that are not practically zero."""
    if name == "rdf":
        return true > ABOVE
    if name == "adf":
        return true > ABOVE * true.mean()
    return np.ones(np.shape(true), bool)


def coverage(intervals: dict[str, bp.Interval], true: dict[str, np.ndarray]) -> dict[str, float]:
    """Share of values inside the intervals, by observable."""
    return {n: float(it.covers(true[n])[counted(n, true[n])].mean()) for n, it in intervals.items()}


def convergence(posterior) -> dict[str, float | None]:
    """Largest R-hat and smallest bulk ESS over the held-out energies.

    ``None`` where chains have too few draws, as in an ensemble.
    """
    energies = posterior.prediction.members["energy"]
    try:
        return {
            "rhat": float(np.max(bp.rhat(posterior.samples, energies))),
            "ess": float(np.min(bp.ess(posterior.samples, energies))),
        }
    except ValueError:
        return {"rhat": None, "ess": None}


def calibration(posterior, test: bp.Dataset) -> list[bp.Reliability]:
    """Coverage of the held-out labels that there are, out of energies and forces."""
    there = [q for q in ("energy", "forces") if bool(getattr(test, f"has_{q}").any())]
    return [bp.coverage(posterior.prediction, test, q) for q in there]


def summary(material, posteriors: dict, true: dict | None) -> dict:
    """All numbers of the report, writable as JSON."""
    out = {}
    for name, p in posteriors.items():
        curves = calibration(p, material.test)
        out[name] = {
            "samples": len(p.samples),
            "simulated": len(p.simulated),
            "stable_fraction": p.stable,
            **convergence(p),
            "held_out": [e._asdict() for e in bp.prediction_errors(p.prediction, material.test)],
            "calibration": {
                c.quantity: {"level": np.asarray(c.level).tolist(), "observed": np.asarray(c.observed).tolist()}
                for c in curves
            },
            "intervals": {n: _plain(it) for n, it in p.intervals.items()},
        }
        if true is not None:
            out[name]["coverage_of_teacher"] = coverage(p.intervals, true)
    if true is not None:
        out["teacher"] = {n: np.asarray(v).tolist() for n, v in true.items()}
    return out


def _plain(it: bp.Interval) -> dict:
    arrays = ("mean", "lower", "upper", "std_model", "std_sampling", "resolved", "coordinate")
    others = ("unit", "kind", "level", "samples", "sampling", "dropped")
    return {n: np.asarray(getattr(it, n)).tolist() for n in arrays} | {n: getattr(it, n) for n in others}


def text(material, posteriors: dict, true: dict | None) -> str:
    """The table at the end."""
    lines = []
    for name, p in posteriors.items():
        lines += ["", f"== {name}: {len(p.samples)} samples, {len(p.simulated)} simulated, {p.stable:.0%} stable"]
        state = convergence(p)
        if state["rhat"] is not None:
            lines.append(f"   R-hat ≤ {state['rhat']:.3f}, bulk ESS ≥ {state['ess']:.0f} (held-out energies)")
            if state["rhat"] > 1.1:
                lines.append("   Above 1.1 the chains still differ: its intervals rest on few independent samples.")
        else:
            lines.append("   R-hat and ESS need two chains of at least 8 draws; not defined here")
        lines.append(bp.error_table([e for e in bp.prediction_errors(p.prediction, material.test) if e.group == "all"]))
        lines.append(bp.calibration_table(calibration(p, material.test)))
        if not p.intervals:
            lines.append("No intervals: fewer than two samples gave stable simulations. Train longer or on more data.")
            continue
        truth = None if true is None else {p.intervals[n].name: v for n, v in true.items() if n in p.intervals}
        lines.append(
            bp.table(
                [p.intervals[n] for n in ("energy", "pressure", "msd", "rdf") if n in p.intervals], limit=6, truth=truth
            )
        )
        if true is not None:
            inside = ", ".join(f"{n} {v:.0%}" for n, v in coverage(p.intervals, true).items())
            lines.append(f"values of the teacher (truth) inside the 95 % intervals: {inside}")
    return "\n".join(lines)


def write(folder: Path, material, posteriors: dict, true: dict | None) -> None:
    """``summary.json``, ``results.nc`` (an xarray DataTree) and the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary(material, posteriors, true), indent=1, allow_nan=False))
    datatree(posteriors).to_netcdf(folder / "results.nc", engine="h5netcdf")
    for name, p in posteriors.items():
        bp.save(p.samples, folder / f"{name.replace(' ', '_')}.safetensors")
    figures(folder, material, posteriors, true)


def datatree(posteriors: dict):
    """One group per posterior: ArviZ's groups, and in ``posterior_predictive`` every observable of every sample."""
    import xarray as xr

    tree = {}
    for name, p in posteriors.items():
        top = name.replace(" ", "_")
        for node in bp.to_arviz(p.samples).subtree:
            if node.has_data:
                tree[f"/{top}{node.path}"] = node.to_dataset()
        tree[f"/{top}/posterior_predictive"] = _observables(p)
    return xr.DataTree.from_dict(tree)


def _observables(p):
    """Every observable of every simulated sample, averaged over replicas, with the dimensions ``chain`` and ``draw``.

    ``status`` is the worst of a sample's runs; where it is not 0 (OK) the values are NaN, so that no mean counts them.
    """
    import xarray as xr

    status = np.asarray(next(iter(p.observed.values())).status).max(1)
    chain, draw = (np.asarray(x) for x in (p.simulated.chain, p.simulated.draw))
    chains = np.unique(chain)
    coords = {"chain": chains, "draw": np.unique(draw)}

    def grid(value):
        return value.reshape(len(chains), -1, *value.shape[1:])

    data = {"status": xr.DataArray(grid(status), dims=("chain", "draw"))}
    for name, o in p.observed.items():
        value = np.array(o.value.mean(1), float)
        value[status != 0] = np.nan
        dims = ("chain", "draw", *([f"{name}_coordinate"] if value.ndim > 1 else []))
        data[name] = xr.DataArray(grid(value), dims=dims, attrs={"unit": o.unit, "axis": o.axis})
        if value.ndim > 1:
            data[name] = data[name].assign_coords({dims[-1]: np.asarray(o.coordinate[0])})
    return xr.Dataset(data, coords=coords)


def figures(folder: Path, material, posteriors: dict, true: dict | None) -> None:
    """RDF band, reliability, learning curves and parity of every posterior."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for name, p in posteriors.items():
        key = name.replace(" ", "_")
        curves = calibration(p, material.test)
        for what in (n for n in ("rdf", "adf") if n in p.intervals):
            figure, (above, below) = plt.subplots(2, sharex=True, figsize=(5, 5.5), layout="constrained")
            for ax in (above, below):
                bp.plot_interval(p.intervals[what], (true or {}).get(what), ax=ax, centred=ax is below)
            _finish(figure, above, name, folder / f"{key}_{what}.png")
        plots = {
            "reliability": lambda ax, c=curves: bp.plot_reliability(c, ax=ax),
            "learning": lambda ax, p=p: bp.plot_learning(p.samples, ax=ax),
            "parity": lambda ax, p=p, q=curves[-1].quantity: bp.plot_parity(p.prediction, material.test, q, ax=ax),
        }
        for what, plot in plots.items():
            figure, ax = plt.subplots(figsize=(5, 4), layout="constrained")
            plot(ax)
            _finish(figure, ax, name, folder / f"{key}_{what}.png")


def _finish(figure, ax, title: str, file: Path) -> None:
    import matplotlib.pyplot as plt

    ax.set_title(title)
    figure.savefig(file, dpi=150)
    plt.close(figure)
