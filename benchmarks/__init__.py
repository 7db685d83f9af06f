"""Side-by-side measurements."""

import stages  # noqa: F401  # sets OpenMP's environment variables, which must happen before PyTorch loads OpenMP
