"""A program as a node starts it: prints what it finds, and exits with status 3."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time

if __name__ == "__main__":
    preloaded = sys.modules.get("fork_preload")
    found = {
        "preloaded_by": preloaded.PID if preloaded else None,
        "pid": os.getpid(),
        "arguments": sys.argv[1:],
        "variables": {name: os.environ.get(name) for name in ("VALUE", "RAY_JOB_ID", "HF_TOKEN")},
        "start_method": multiprocessing.get_start_method(),
        "folder": os.getcwd(),
    }
    print(json.dumps(found), flush=True)
    if "wait" in sys.argv:
        time.sleep(600)
    sys.exit(3)
