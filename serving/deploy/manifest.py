"""The same specification as files: a Serve config for ``serve deploy``, a KubeRay RayService."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from serving import SERVE_FLAGS
from serving.cluster.connection import FORWARD_BODY, QUIET, SERVE_TUNING
from serving.deploy import kuberay
from serving.deploy.app import spec_from, tenants_from
from serving.engine.engine_args import check_engine_kwargs
from serving.errors import SpecError
from serving.sizing.checks import check_cache, check_parallel
from serving.spec.baseline import BaselineSpec
from serving.spec.model import TINY, ModelSpec
from serving.spec.service import EndpointSpec

Kind = Literal["serve", "kuberay"]
KINDS: tuple[Kind, ...] = ("serve", "kuberay")
BUILDER = "serving.deploy.app:build"
PORT = 8000


def read_spec(file: Path) -> tuple[EndpointSpec, dict[str, Any]]:
    """The specification in a YAML (or JSON) file, and who may call as far as it says.

    Its fields are a ServiceSpec's or a PipelineSpec's, and ``key_hashes`` and ``tenants``.

    Raises:
        SpecError: the file cannot be read, or its fields are none.
    """
    try:
        fields = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{file} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise SpecError(f"{file} holds no fields of a specification, such as 'name: llm'.")
    return spec_from(fields)


def serve_config(spec: EndpointSpec, callers: Mapping[str, Any]) -> dict[str, Any]:
    """What ``serve deploy`` takes: Ray's ``ServeDeploySchema`` as plain data.

    ``callers`` has ``key_hashes`` or ``tenants``, as :func:`serving.deploy.app.build` takes them.
    Without
    any the cluster's processes must have the variable ``LLM_WORKBENCH_KEY_HASHES``. Its nodes must
    be able to import this package.

    Raises:
        SpecError: the spec cannot be told as a file, or names what only this machine has.
    """
    _check(spec, callers)
    args = spec.model_dump(mode="json", exclude_defaults=True, exclude={"host", "port"})
    args |= callers
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": spec.host, "port": spec.port or PORT},
        "controller_options": {"runtime_env": {"env_vars": serve_environment(spec)}},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {
                "name": spec.name,
                "route_prefix": spec.route_prefix,
                "import_path": BUILDER,
                # The task that builds the application reads them too.
                "runtime_env": {"env_vars": serve_environment(spec)},
                "args": args,
            }
        ],
    }


def serve_environment(spec: EndpointSpec) -> dict[str, str]:
    """What Ray Serve reads when it starts, and what keeps its processes quiet."""
    prefix = any(model.routing == "prefix_aware" for model in spec.models)
    return SERVE_FLAGS | (FORWARD_BODY if prefix else {}) | SERVE_TUNING | QUIET


def ray_service(spec: EndpointSpec, image: str, callers: Mapping[str, Any]) -> dict[str, Any]:
    """A KubeRay ``RayService`` (ray.io/v1) as plain data.

    The head takes no work; each model has a group of worker pods that Ray's autoscaler grows within
    the spec's own bounds. Who may call is what ``callers`` say, else the hashes in the Kubernetes
    secret ``NAME-keys``, a hub token from the optional secret ``NAME-hub``.

    Raises:
        SpecError: as :func:`serve_config`.
    """
    inside = spec.model_copy(update={"host": "0.0.0.0", "port": PORT})
    config = serve_config(inside, callers)
    return kuberay.ray_service(spec, config, image, serve_environment(spec), not callers)


def write(kind: Kind, spec: EndpointSpec, image: str, callers: Mapping[str, Any]) -> str:
    """The manifest as YAML, with a line on how to use it.

    Raises:
        SpecError: as :func:`serve_config`; a Serve config without any key.
    """
    if kind == "serve":
        if not callers:
            raise SpecError(
                "no key may call: set LLM_WORKBENCH_API_KEY, of which only the hash is written, or "
                "give --key-hash."
            )
        return "# serve deploy FILE\n" + _yaml(serve_config(spec, callers))
    document = ray_service(spec, image, callers)
    return f"{kuberay.usage(spec, not callers)}{_yaml(document)}"


def _check(spec: EndpointSpec, callers: Mapping[str, Any]) -> None:
    if isinstance(spec, BaselineSpec):
        raise SpecError(
            "a BaselineSpec is for comparisons in a notebook and has no manifest; use a ServiceSpec"
        )
    if callers:
        tenants_from(callers)
    for model in spec.engines:
        check_engine_kwargs(model)
        check_parallel(model)
        check_cache(model)
        _check_source(model)


def _check_source(model: ModelSpec) -> None:
    source = model.source
    here = source.startswith((".", "~")) or Path(source).exists()
    if source != TINY and here and not source.startswith("/"):
        raise SpecError(
            f"model.source = {source!r} is a folder of this machine, which the cluster's nodes do "
            "not have; give a hub id, or an absolute path in the image or on a volume."
        )


def _yaml(document: Mapping[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=100)


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
