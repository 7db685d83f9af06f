"""The pipeline: one module for each stage, and the modules that they share."""

import os

import joblib

# OpenMP reads these variables when PyTorch loads it, so they are set before any module of this package is imported.
# Its default is a thread for every core of the machine, also in a container with a quota of one CPU, and threads that
# spin for long while they wait, which slows training down many times as soon as another process needs the CPU.
# `make bench-training OPTIONS=--shared` compares spin counts.
os.environ.setdefault("OMP_NUM_THREADS", str(joblib.cpu_count()))
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
