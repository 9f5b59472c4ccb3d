"""One torchrun world that trains several runs, one after the other: ``several.py PORT FOLDER [PORT FOLDER]…``.

FOLDER: a run's, prepared by the store, of as many ranks as there are or fewer.
PORT: a free one for this run's rendezvous; torchrun's own store would still hold the addresses of the run before.
"""

import gc
import os
import sys
import time
from pathlib import Path

from harness import worker
from harness.leaving import leave_world
from harness.spec import RunSpec


def main(words):
    rank = int(os.environ["RANK"])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "False"}
    for port, folder in zip(words[::2], words[1::2], strict=True):
        spec = RunSpec.model_validate_json((Path(folder) / "spec.json").read_bytes())
        if rank >= spec.world_size:
            continue
        os.environ |= {
            "MASTER_PORT": port,
            "WORLD_SIZE": str(spec.world_size),
            "OPTBENCH_STARTED_UNIX_S": repr(time.time()),
        }
        worker.main(["--prepared", folder])  # a run that fails says so itself
        leave_world()
        gc.unfreeze()
        gc.collect()


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # the code under test may have left threads
