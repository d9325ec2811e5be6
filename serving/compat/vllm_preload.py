"""What a replica's fork server imports: all that the processes of an engine need."""

import gc

import ray  # noqa: F401 - the main module of a replica imports it
import vllm.v1.engine.core
import vllm.v1.executor.multiproc_executor
from setproctitle import setproctitle
from vllm.platforms import current_platform

if current_platform.is_cpu():
    import vllm.v1.worker.cpu_worker
elif current_platform.is_cuda_alike():
    import vllm.v1.worker.gpu_worker  # noqa: F401

setproctitle("VLLM::ForkServer")
gc.collect()
# Objects that no collection touches stay in pages that all processes share.
gc.freeze()
