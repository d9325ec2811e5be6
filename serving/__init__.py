"""What runs on the cluster: the service's specification, its Serve application and its replicas.

Nothing here knows of Jupyter, and nothing here imports ``workbench``.
"""

import os

# Ray Serve reads this when it is imported, and more than one way leads there before a cluster is
# joined (a manifest, a policy tried by hand). Direct streaming needs it: HAProxy hands each request
# straight to the replica's own HTTP server.
SERVE_FLAGS = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
os.environ.update(SERVE_FLAGS)
