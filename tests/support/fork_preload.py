"""What the fork server of `fork_program` imports."""

import os
import time

PID = os.getpid()
time.sleep(0.3)
