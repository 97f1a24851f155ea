"""Programs that are run by many processes, as torchrun starts them."""

import os
import subprocess
import sys


def torchrun(count, *command):
    """Run a module, or a script (.py), in that many processes, none of which may fail."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    module = [] if str(command[0]).endswith(".py") else ["-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "USE_LIBUV": "0"}
    arguments = [*launch, "--nproc-per-node", str(count), *module, *map(str, command)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
