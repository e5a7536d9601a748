r"""Scores of a predictive distribution at the label, in closed form; the honest distribution has the lowest mean score.

The distribution is Student's t with location :math:`\bar y`, scale *s* and :math:`\nu` degrees of freedom, because the
scale of a few samples is itself uncertain; for :math:`\nu \to \infty` it is the Gaussian. All functions take errors in
units of the scale, :math:`z = (y - \bar y)/s`, and work for any :math:`\nu` up to infinity without loss of digits.

Reference: Gneiting and Raftery, *J. Am. Stat. Assoc.* 102, 359 (2007).
"""

import numpy as np
from scipy import special, stats


def log_density(z: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    r"""Logarithm of Student's density,
    :math:`-\tfrac12\ln\nu - \ln B(\tfrac\nu2, \tfrac12) - \tfrac{\nu+1}2\ln(1 + z^2/\nu)`.
    """
    constant = -0.5 * np.log(freedom) - special.betaln(freedom / 2, 0.5)
    return constant - 0.5 * (freedom + 1) * np.log1p(z**2 / freedom)


def crps(z: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    r"""Continuous ranked probability score, :math:`\int (F(x) - 1_{x \ge z})^2\,dx`, in units of the scale.

    .. math:: z\,(2F(z) - 1) + 2 f(z)\,\frac{\nu + z^2}{\nu - 1}
              - \frac{2\sqrt\nu}{\nu - 1}\,\frac{B(\frac12, \nu - \frac12)}{B(\frac12, \frac\nu2)^2}

    For :math:`\nu \to \infty` this is :math:`z(2\Phi(z) - 1) + 2\varphi(z) - 1/\sqrt\pi` (Gneiting and Raftery 2007,
    eq. 21). It is NaN for :math:`\nu \le 1/2`, where the integral diverges.

    Reference: Jordan, Krüger and Lerch, *J. Stat. Softw.* 90(12) (2019), appendix A.
    """
    freedom = np.where(np.abs(freedom - 1) < 1e-6, 1 + 1e-6, freedom)  # the two poles at 1 cancel
    v = np.where(freedom > 0.5, freedom, np.nan)
    beta = np.exp(special.betaln(0.5, v - 0.5) - 2 * special.betaln(0.5, v / 2))
    about = 2 * np.exp(log_density(z, v)) * (v + z**2) - 2 * np.sqrt(v) * beta
    return z * (2 * stats.t.cdf(z, v) - 1) + about / (v - 1)


def interval_score(z: np.ndarray, freedom: np.ndarray, level: float) -> np.ndarray:
    r"""Score of the central interval: its width, plus :math:`2/(1 - \mathrm{level})` times the distance to a label
    outside, in units of the scale (Gneiting and Raftery 2007, eq. 43).
    """
    half = stats.t.ppf(0.5 + level / 2, freedom)
    return 2 * half + 2 / (1 - level) * np.maximum(np.abs(z) - half, 0.0)
