"""The pipeline: one module for each stage, and the modules that they share."""

import os

import joblib

# By default, OpenMP starts one thread for each core of the machine, although a container may have a smaller CPU quota,
# and waiting threads spin for long. Beside another process, this makes training many times slower, as
# `make bench-training OPTIONS=--shared` measures. OpenMP reads the variables when PyTorch loads it, so they are set
# before any module of this package is imported.
os.environ.setdefault("OMP_NUM_THREADS", str(joblib.cpu_count()))
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
