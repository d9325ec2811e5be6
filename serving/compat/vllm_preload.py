"""Imports what the processes of an engine need."""

import ray  # noqa: F401 - the main module of a replica imports it
import vllm.v1.engine.core
import vllm.v1.executor.multiproc_executor
from vllm.platforms import current_platform

if current_platform.is_cpu():
    import vllm.v1.worker.cpu_worker
elif current_platform.is_cuda_alike():
    import vllm.v1.worker.gpu_worker  # noqa: F401
