"""What a replica's own fork server imports."""

import gc

from setproctitle import setproctitle

import serving.compat.vllm_preload  # noqa: F401

setproctitle("VLLM::ForkServer")
gc.collect()
# Objects that no collection touches stay in pages that all processes share.
gc.freeze()
