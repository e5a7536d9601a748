"""The command line: ``bayespot quickstart``."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Entry point of ``bayespot``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="bayespot", description="Credible intervals for molecular simulation.")
    commands = parser.add_subparsers(dest="command", required=True)
    quick = commands.add_parser("quickstart", help="the whole road, from data to credible intervals, on one example")
    quick.add_argument("--out", type=Path, default=Path("quickstart"), help="folder for results (default: quickstart)")
    quick.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    quick.add_argument("--fast", action="store_true", help="a shorter run, to see that everything works")
    quick.add_argument("--data", type=Path, help="training frames in a file that ASE reads; default: a teacher's")
    quick.add_argument("--test", type=Path, help="held-out frames; default: a seventh of --data")
    quick.add_argument("--quiet", action="store_true", help="no progress bars")
    chosen = parser.parse_args(arguments)
    if arguments is None:  # Ctrl-C ends the process at once; Python would first wait for all threads
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if chosen.test is not None and chosen.data is None:
        parser.error("--test needs --data")
    for path in (chosen.data, chosen.test):
        if path is not None and not path.exists():
            parser.error(f"no such file: {path}")
    return _quickstart(chosen)


def _quickstart(chosen: argparse.Namespace) -> int:
    import jax

    if jax.config.jax_num_cpu_devices < 1:
        # one device per core: chains and simulations run side by side
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1)
    if chosen.fast:  # much is compiled and little computed
        jax.config.update("jax_disable_most_optimizations", True)
    from bayespot import report
    from bayespot.errors import FailedSamples
    from bayespot.quickstart import FAST, FAST_FILES, quickstart

    begin = time.perf_counter()
    fast = FAST if chosen.data is None else FAST_FILES
    try:
        material, posteriors, true = quickstart(
            chosen.seed, fast if chosen.fast else None, data=chosen.data, test=chosen.test, progress=not chosen.quiet
        )
    except (ValueError, FailedSamples) as error:  # their messages say what to do
        print(f"bayespot: {error}", file=sys.stderr)
        return 1
    report.write(chosen.out, material, posteriors, true)
    print(report.text(material, posteriors, true))
    print(f"\nResults and figures in {chosen.out}/ after {time.perf_counter() - begin:.0f} s.")
    return 0
