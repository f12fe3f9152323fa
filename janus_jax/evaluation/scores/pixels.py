"""PSNR and SSIM between an image and its reconstruction, as scikit-image computes them.

Letters: H W rows and columns, C channels.
"""

import numpy as np

SSIM_WINDOW = 7  # rows and columns; the default of scikit-image
_K1, _K2 = 0.01, 0.03


def psnr(image: np.ndarray, reconstruction: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of arrays of one shape with values from 0 to 1; infinite for equal ones."""
    error = np.mean(np.square(image.astype(np.float64) - reconstruction.astype(np.float64)))
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def ssim(image: np.ndarray, reconstruction: np.ndarray, data_range: float = 1.0) -> float:
    """Structural similarity (Wang et al., 2004) of [H, W, C] arrays, the mean over channels.

    Windows are squares of equal weights, variances have n - 1, and windows that leave the image do not count.

    Args:
        data_range: difference of the largest and the smallest possible value. LlamaGen passes 2.0 for values from 0 to
            1, which gives larger figures; so both are reported.
    """
    x, y = image.astype(np.float64), reconstruction.astype(np.float64)
    n = SSIM_WINDOW**2
    mean_x, mean_y = _window_means(x), _window_means(y)
    unbiased = n / (n - 1)
    var_x = unbiased * (_window_means(x * x) - mean_x**2)
    var_y = unbiased * (_window_means(y * y) - mean_y**2)
    covariance = unbiased * (_window_means(x * y) - mean_x * mean_y)
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    denominator = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float((numerator / denominator).mean())


def _window_means(x: np.ndarray) -> np.ndarray:
    """The mean of every window that lies inside the image: [H, W, C] -> [H - 6, W - 6, C]."""
    for axis in (0, 1):
        x = np.lib.stride_tricks.sliding_window_view(x, SSIM_WINDOW, axis=axis).mean(axis=-1)
    return x
