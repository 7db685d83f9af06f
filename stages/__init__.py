"""The pipeline: one module for each stage, and the modules that they share."""

import os

import joblib

# OpenMP reads these variables when PyTorch loads it, so they are set before any module of this package is imported.

# By default, OpenMP starts a thread for each core of the machine, although a container may have a smaller CPU quota.
os.environ.setdefault("OMP_NUM_THREADS", str(joblib.cpu_count()))

# By default, a thread that waits for others spins for long. Beside another process, this makes training many times
# slower, as `make bench-training OPTIONS=--shared` measures.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
