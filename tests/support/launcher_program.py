"""`serving.engine.worker_launcher` with a server that imports `fork_preload` instead of vLLM."""

from __future__ import annotations

import sys

from serving.engine import worker_launcher

if __name__ == "__main__":
    worker_launcher.PRELOAD = "fork_preload"
    worker_launcher.main(sys.argv[1:])
