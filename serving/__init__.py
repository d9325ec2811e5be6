"""What runs on the cluster: the service's specification, its Serve application and its replicas.

Nothing here knows of Jupyter, and nothing here imports ``workbench``.
"""
