"""Training speed and memory with `shard_update` and without, in turns.

python -m benchmarks.shard_update [CELLS] [--rounds 20]      # benchmarks/results/shard_update.json
"""

import sys

from benchmarks.compare_libraries import main

if __name__ == "__main__":
    main("shard_update", ("train",), [*sys.argv[1:], "--peer", "ours-sharded"])
