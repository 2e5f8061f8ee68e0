"""Speed of the variational bound, compared with its function evaluations alone.

    python -m benchmarks.likelihood [CELLS]

"images per second" are images times function evaluations.  No other library here has a likelihood.
"""

import sys

from benchmarks.compare_libraries import main

if __name__ == "__main__":
    main("likelihood", ("network", "likelihood"), sys.argv[1:])
