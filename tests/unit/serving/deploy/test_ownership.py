"""Who may replace an application: what `deploy` does with the applications that a cluster runs."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from serving.deploy import ownership
from serving.deploy.deployments import user_config
from serving.errors import NameTakenError
from serving.spec.model import ModelSpec
from serving.spec.pipeline import PipelineSpec
from serving.spec.service import EndpointSpec, ServiceSpec
from serving.spec.tenants import Tenant

CLUSTER = "192.0.2.1:6379"
OWNER = (Tenant(name="owner", key_hash="0" * 64),)


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "_deployed", {})
    become(monkeypatch, "ada")


def become(monkeypatch: pytest.MonkeyPatch, user: str) -> None:
    monkeypatch.setattr(ownership, "user_name", lambda: user)


def running(spec: EndpointSpec, **changes: Any) -> dict[str, Any]:
    """Serve's details of an application that this user deployed, as far as they are read."""
    config = user_config(spec, OWNER) | changes
    plain = {"deployment_config": {"user_config": None}}
    ingress = {"deployment_config": {"user_config": config}}
    return {
        "status": "RUNNING",
        "route_prefix": spec.route_prefix,
        "deployments": {"router": plain, "ingress": ingress},
    }


def manifest(spec: EndpointSpec) -> dict[str, Any]:
    """An application that `serve deploy` started, or another project."""
    return running(spec) | {"deployments": {"a": {"deployment_config": {}}}}


def name_of(spec: EndpointSpec, applications: dict[str, Any], **options: Any) -> tuple[str, str]:
    own = ownership.named(spec, CLUSTER, applications, **options)
    return own.name, own.route_prefix


OTHER_SPEC = ServiceSpec(model=ModelSpec(max_model_len=256))


class TestDefaultName:
    def test_it_is_the_plain_name_if_that_is_free(self) -> None:
        assert name_of(ServiceSpec(), {}) == ("llm", "/")
        assert name_of(PipelineSpec(models=[ModelSpec()]), {}) == ("llm", "/")

    def test_the_same_user_and_spec_continue_the_application(self) -> None:
        assert name_of(ServiceSpec(), {"llm": running(ServiceSpec())}) == ("llm", "/")

    def test_another_user_gets_another_name_and_route(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        applications = {"llm": running(ServiceSpec())}
        become(monkeypatch, "Bob_B.Smith@X")
        assert name_of(ServiceSpec(), applications) == (
            "llm-bob-b-smith-x",
            "/llm-bob-b-smith-x",
        )
        assert name_of(ServiceSpec(route_prefix="/a"), applications)[1] == "/a/llm-bob-b-smith-x"

    def test_another_spec_of_another_process_gets_another_name(self) -> None:
        applications = {"llm": running(OTHER_SPEC)}
        assert name_of(ServiceSpec(), applications) == ("llm-ada", "/llm-ada")

    def test_the_second_process_of_a_user_gets_a_number(self) -> None:
        third = OTHER_SPEC.model_copy(update={"start_timeout_s": 9.0})
        applications = {"llm": running(OTHER_SPEC)}
        second = ownership.named(third, CLUSTER, applications)
        applications[second.name] = running(second)
        assert name_of(ServiceSpec(), applications) == ("llm-ada-2", "/llm-ada-2")
        # The same spec again, from a new process, is the running application.
        assert name_of(third, applications) == ("llm-ada", "/llm-ada")
        del applications["llm"]
        assert name_of(third, applications) == ("llm-ada", "/llm-ada")

    def test_an_application_without_a_record_belongs_to_another_user(self) -> None:
        applications = {"llm": manifest(ServiceSpec())}
        assert name_of(ServiceSpec(), applications) == ("llm-ada", "/llm-ada")

    def test_a_long_name_of_a_user_is_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        applications = {"llm": running(OTHER_SPEC)}
        become(monkeypatch, "x" * 200)
        name, _ = name_of(ServiceSpec(), applications)
        assert ServiceSpec(name=name).name == name

    def test_too_many_applications_of_a_user_are_an_error(self) -> None:
        applications = {"llm": manifest(OTHER_SPEC)}
        for _ in range(ownership.SUFFIXES):
            own = ownership.named(ServiceSpec(), CLUSTER, applications)
            applications[own.name] = manifest(own)
        with pytest.raises(NameTakenError, match="name = 'llm'"):
            name_of(ServiceSpec(), applications)

    def test_replace_takes_the_plain_name(self) -> None:
        applications = {"llm": manifest(OTHER_SPEC)}
        assert name_of(ServiceSpec(), applications, replace=True) == ("llm", "/")


class TestChosenName:
    def test_it_stays_in_the_process_that_deployed_it(self) -> None:
        first = ServiceSpec(name="mine")
        ownership.remember(first, CLUSTER)
        changed = ServiceSpec(name="mine", start_timeout_s=9)
        assert name_of(changed, {"mine": running(first)}) == ("mine", "/")
        # A change that could not be deployed leaves the first one running.
        ownership.remember(changed, CLUSTER)
        third = ServiceSpec(name="mine", start_timeout_s=8)
        assert name_of(third, {"mine": running(first)}) == ("mine", "/")

    def test_another_cluster_is_another_matter(self) -> None:
        ownership.remember(ServiceSpec(name="mine"), "192.0.2.9:6379")
        with pytest.raises(NameTakenError):
            name_of(
                OTHER_SPEC.model_copy(update={"name": "mine"}),
                {"mine": running(ServiceSpec(name="mine"))},
            )

    @pytest.mark.parametrize("default", [True, False])
    def test_it_is_never_changed(self, monkeypatch: pytest.MonkeyPatch, default: bool) -> None:
        name = "llm" if default else "mine"
        applications = {name: running(ServiceSpec(name=name))}
        become(monkeypatch, "bob")
        with pytest.raises(NameTakenError) as caught:
            name_of(ServiceSpec(name=name), applications)
        message = str(caught.value)
        assert f"name = {name!r}" in message
        assert " of ada@" in message
        assert "was deployed by another user" in message
        assert "replace=True" in message
        assert name_of(ServiceSpec(name=name), applications, replace=True) == (name, "/")

    def test_another_spec_of_the_same_user_is_named(self) -> None:
        with pytest.raises(NameTakenError, match=r"of ada@.* runs another spec"):
            name_of(ServiceSpec(name="llm"), {"llm": running(OTHER_SPEC)})


class TestRoute:
    def test_a_route_of_another_application_is_rejected(self) -> None:
        applications = {"other": running(ServiceSpec(name="other"))}
        with pytest.raises(NameTakenError) as caught:
            name_of(ServiceSpec(name="mine"), applications)
        message = str(caught.value)
        assert "route_prefix = '/' belongs to the application 'other' of ada@" in message
        assert "'/mine'" in message

    def test_a_route_that_is_being_deleted_is_free(self) -> None:
        applications = {"other": running(ServiceSpec(name="other")) | {"status": "DELETING"}}
        assert name_of(ServiceSpec(name="mine"), applications) == ("mine", "/")


def test_who_may_delete_an_application(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ServiceSpec()
    applications = {"llm": running(spec)}
    assert ownership.owns(spec, CLUSTER, applications)
    assert ownership.owns(spec, CLUSTER, {})
    assert not ownership.owns(OTHER_SPEC, CLUSTER, applications)
    become(monkeypatch, "bob")
    assert not ownership.owns(spec, CLUSTER, applications)


def test_two_hosts_with_the_same_user_are_two_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    applications = {"llm": running(ServiceSpec())}
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    assert not ownership.owns(ServiceSpec(), CLUSTER, applications)
