from __future__ import annotations

import numpy as np

from imagelab.report.restored import middle, plot_restored
from imagelab.techniques.restoration import Restored


def test_the_best_of_each_row_is_framed():
    clean = np.full((20, 30), 0.5)
    restored = {
        f"step {k}": {
            method: Restored(clean, psnr + (7 if k == 2 and method == "a" else 0), 0.5, 0.0)
            for method, psnr in (("noisy", 10.0), ("a", 12.0), ("b", 15.0))
        }
        for k in (1, 2)
    }
    axes = np.array(plot_restored(restored, dict.fromkeys(restored, clean)).axes).reshape(2, 4)
    assert [[len(axis.patches) for axis in row] for row in axes] == [[0, 0, 0, 1], [0, 0, 1, 0]]
    assert [axis.get_title() for axis in axes[0]][:3] == ["clean\n", "noisy\n10.0 dB", "a\n12.0 dB"]


def test_the_middle_is_shown_where_asked():
    wide = np.zeros((20, 31))
    wide[9, 15] = 1.0
    assert middle(wide, 5).shape == (5, 5) and middle(wide, 5)[2, 2] == 1
    restored = {"only": {"noisy": Restored(wide, 10.0, 0.5, 0.0)}}
    shapes = [
        [
            axis.images[0].get_array().shape
            for axis in plot_restored(restored, {"only": wide}, side).axes
        ]
        for side in (None, 6)
    ]
    assert shapes == [[(20, 31)] * 2, [(6, 6)] * 2]
