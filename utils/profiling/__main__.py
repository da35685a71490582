"""The command line of the estimator of memory: see :mod:`utils.profiling.fit`."""

from utils.profiling.fit import main

main()
