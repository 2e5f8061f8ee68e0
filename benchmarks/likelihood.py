"""The variational bound, and calls of the network alone: what the bound takes beyond them is its own.

    python -m benchmarks.likelihood [CELLS]

"images per second" are images times network calls.  No peer has a likelihood.
"""

import sys

from benchmarks.compare_libraries import main

if __name__ == "__main__":
    main("likelihood", ("network", "likelihood"), sys.argv[1:])
