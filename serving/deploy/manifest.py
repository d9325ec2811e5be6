"""A specification as a file: a Serve config for ``serve deploy``, or a RayService for KubeRay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from serving.compat.variables import (
    FORWARD_BODY_FLAGS,
    LOGGING,
    QUIET,
    SERVE_FLAGS,
    SERVE_TUNING,
)
from serving.deploy import kuberay
from serving.deploy.arguments import spec_from
from serving.deploy.preflight import check_manifest
from serving.errors import SpecError
from serving.proxy.wrapper import proxy_settings
from serving.spec.model import READS_PROMPTS
from serving.spec.service import EndpointSpec

Kind = Literal["serve", "kuberay"]
KINDS: tuple[Kind, ...] = ("serve", "kuberay")
BUILDER = "serving.deploy.app:build"
PORT = 8000


def read_spec(file: Path) -> tuple[EndpointSpec, dict[str, Any]]:
    """Read a specification from a YAML or JSON file.

    Its fields are those of a ServiceSpec or a PipelineSpec, and ``key_hashes`` and ``tenants``.

    Returns:
        The specification, and ``key_hashes`` and ``tenants`` as far as the file has them.

    Raises:
        SpecError: The file cannot be read, or a field is invalid.
    """
    try:
        fields = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{file} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise SpecError(f"{file} must contain the fields of a specification, such as 'name: llm'.")
    return spec_from(fields)


def serve_config(spec: EndpointSpec, callers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the input of ``serve deploy``: Ray's ``ServeDeploySchema`` as plain data.

    The cluster's nodes must be able to import this package.

    Args:
        spec: The specification.
        callers: ``key_hashes`` and ``tenants`` as :func:`serving.deploy.app.build` takes them. If
            empty, the cluster's processes need the variable ``LLM_WORKBENCH_KEY_HASHES``.

    Raises:
        SpecError: The specification cannot be deployed from a file.
    """
    check_manifest(spec, callers)
    args = spec.model_dump(mode="json", exclude_defaults=True, exclude={"host", "port"})
    args |= callers
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": spec.host, "port": spec.port or PORT},
        "controller_options": {"runtime_env": {"env_vars": serve_environment(spec)}},
        "logging_config": dict(LOGGING),
        "applications": [
            {
                "name": spec.name,
                "route_prefix": spec.route_prefix,
                "import_path": BUILDER,
                # The task that builds the application reads the variables too.
                "runtime_env": {"env_vars": serve_environment(spec)},
                "args": args,
            }
        ],
    }


def serve_environment(spec: EndpointSpec) -> dict[str, str]:
    """Return the variables that Ray Serve reads when it starts."""
    reads_prompts = any(model.routing in READS_PROMPTS for model in spec.models)
    variables = SERVE_FLAGS | (FORWARD_BODY_FLAGS if reads_prompts else {}) | SERVE_TUNING | QUIET
    return variables | proxy_settings(spec.max_connections_per_address)


def ray_service(spec: EndpointSpec, image: str, callers: Mapping[str, Any]) -> dict[str, Any]:
    """Return a KubeRay ``RayService`` (ray.io/v1) as plain data.

    The head runs no replica. Each model has a group of worker pods, which Ray's autoscaler grows
    within the bounds of the specification.

    Args:
        spec: The specification.
        image: The image of every pod.
        callers: ``key_hashes`` and ``tenants``. If empty, the hashes come from the Kubernetes
            secret ``NAME-keys``. A hub token comes from the optional secret ``NAME-hub``.

    Raises:
        SpecError: The specification cannot be deployed from a file.
    """
    inside = spec.model_copy(update={"host": "0.0.0.0", "port": PORT})
    # Each pod is a host of its own.
    config = serve_config(inside, callers) | {"proxy_location": "EveryNode"}
    return kuberay.ray_service(spec, config, image, serve_environment(spec), not callers)


def write(kind: Kind, spec: EndpointSpec, image: str, callers: Mapping[str, Any]) -> str:
    """Return the manifest as YAML, with comments on how to use it.

    Raises:
        SpecError: The specification cannot be deployed from a file, or a Serve config has no key.
    """
    if kind == "serve":
        if not callers:
            raise SpecError(
                "a Serve config needs a key: set LLM_WORKBENCH_API_KEY, of which only the hash is "
                "written, or give --key-hash."
            )
        return "# serve deploy FILE\n" + _yaml(serve_config(spec, callers))
    document = ray_service(spec, image, callers)
    return f"{kuberay.usage_comment(spec, not callers)}{_yaml(document)}"


def _yaml(document: Mapping[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=100)


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
