"""A script on a real CUDA GPU, which tells where the program waits for it (see waits.py).

CUDA_VISIBLE_DEVICES=0 python tests/gpu.py gan_mnist --quick --output-dir /tmp/run
"""

from __future__ import annotations

import warnings

import torch
import waits

MESSAGE = "called a synchronizing CUDA operation"


def install() -> None:
    """From here on each operation for which the program waits is counted."""
    torch.cuda.set_sync_debug_mode("warn")
    warnings.filterwarnings("always", MESSAGE)
    show = warnings.showwarning

    def counting(message, category, filename, lineno, file=None, line=None):
        if MESSAGE in str(message):
            waits.note()
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = counting


if __name__ == "__main__":
    install()
    waits.run_script()
