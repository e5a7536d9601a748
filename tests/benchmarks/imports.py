"""Time of ``import bayespot`` beyond ``import jax``, best of several fresh processes."""

import subprocess
import sys

from tests.benchmarks.common import report

CODE = "import time, jax; t = time.perf_counter(); import bayespot; print(time.perf_counter() - t)"


def main() -> None:
    runs = [subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True) for _ in range(5)]
    report("imports", seconds_beyond_jax=min(float(r.stdout) for r in runs))


if __name__ == "__main__":
    main()
