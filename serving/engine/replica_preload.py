"""What a node's fork server imports: all that a replica and its engine's processes need.

It sets no title of its process: then Ray can set those of the replicas.
"""

import gc

import serving.compat.vllm_preload
import serving.engine.replica  # noqa: F401

gc.collect()
# Objects that no collection touches stay in pages that all processes share.
gc.freeze()
