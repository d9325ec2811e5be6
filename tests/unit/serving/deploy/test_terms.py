"""When a service is warned and stopped, on the test's own clock. Times are worked out by hand."""

from __future__ import annotations

import pytest

from serving.deploy.terms import (
    Terms,
    TermsState,
    check_minutes,
    duration,
    first_state,
    next_state,
    warning_s,
)
from serving.errors import SpecError

MINUTE = 60.0


class Service:
    """A service under terms. `minute` lets it go on until then, with its idle time in minutes."""

    def __init__(self, **terms: float) -> None:
        self.terms = Terms(**terms)
        self.state: TermsState = first_state(self.terms, 0.0)

    def minute(
        self, minute: float, idle: float | None = None, *, starting: bool = False
    ) -> list[str]:
        """Return the messages that are new."""
        before = len(self.state.messages)
        self.state = next_state(
            "llm",
            self.terms,
            self.state,
            minute * MINUTE,
            starting=starting,
            idle_s=None if idle is None else idle * MINUTE,
        )
        return list(self.state.messages[before:])


class TestLease:
    def test_it_warns_once_five_minutes_before_its_end_and_stops_then(self) -> None:
        service = Service(lease_minutes=60)
        assert service.minute(54.9, idle=0) == []
        assert service.minute(55, idle=0) == [
            "the lease of llm ends in 5 min; deploy it again to renew the lease"
        ]
        assert service.minute(58, idle=0) == []
        assert service.state.stopped is None
        assert service.minute(60, idle=0) == [LEASE]
        assert service.state.stopped == LEASE

    def test_a_stop_is_announced_once(self) -> None:
        service = Service(lease_minutes=10)
        service.minute(10)
        assert service.minute(11) == []
        assert service.state.stopped == "llm stopped: its lease of 10 min ended"

    def test_requests_do_not_extend_it_and_the_start_counts(self) -> None:
        service = Service(lease_minutes=10, idle_minutes=60)
        service.minute(9.9, starting=True)
        assert service.minute(10, idle=0) == ["llm stopped: its lease of 10 min ended"]


LEASE = "llm stopped: its lease of 1 h ended"


class TestIdle:
    def test_it_stops_after_the_idle_time_with_a_warning_before(self) -> None:
        service = Service(idle_minutes=15)
        assert service.minute(100, idle=9) == []
        assert service.minute(101, idle=10) == [
            "llm has had no request for 10 min; without one it stops in 5 min"
        ]
        assert service.minute(105.9, idle=14.9) == []
        assert service.minute(106, idle=15) == ["llm stopped: no request for 15 min"]

    def test_a_request_after_the_warning_starts_the_time_again(self) -> None:
        service = Service(idle_minutes=15)
        assert len(service.minute(12, idle=12)) == 1
        assert service.minute(13, idle=0.5) == []
        assert service.minute(16, idle=3.5) == []
        # The last request was at 12.5 minutes, so it warns again at 22.5 and stops at 27.5.
        assert service.minute(22.4, idle=9.9) == []
        assert len(service.minute(22.5, idle=10)) == 1
        assert service.minute(27.5, idle=15) == ["llm stopped: no request for 15 min"]

    def test_a_long_start_is_no_idle_time(self) -> None:
        service = Service(idle_minutes=15)
        # The ledger is older than the engine.
        assert service.minute(40, idle=40, starting=True) == []
        assert service.minute(49.9, idle=49.9) == []
        assert len(service.minute(50, idle=50)) == 1
        assert service.minute(55, idle=55) == ["llm stopped: no request for 15 min"]

    def test_an_unknown_idle_time_counts_from_the_last_known_use(self) -> None:
        service = Service(idle_minutes=15)
        service.minute(10, idle=0)
        assert service.minute(19.9) == []
        assert len(service.minute(20)) == 1
        assert service.minute(25) == ["llm stopped: no request for 15 min"]

    def test_a_ledger_that_started_again_does_not_prolong_an_older_use(self) -> None:
        service = Service(idle_minutes=15)
        service.minute(10, idle=0)
        service.minute(12, idle=30)
        assert service.state.used_at == 10 * MINUTE


def test_what_is_left_is_the_time_to_each_end() -> None:
    service = Service(lease_minutes=60, idle_minutes=15)
    service.minute(20, idle=4)
    assert service.state.left_s(service.terms) == {"lease": 40 * MINUTE, "idle": 11 * MINUTE}


@pytest.mark.parametrize(("minutes", "seconds"), [(60, 300), (10, 300), (4, 120), (0.1, 3)])
def test_a_short_period_warns_at_its_half(minutes: float, seconds: float) -> None:
    assert warning_s(Terms(lease_minutes=minutes), "lease") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value", [0, -1, 525_600.1, float("nan"), float("inf"), True, "60", [1], 10**400]
)
def test_a_time_that_is_none_is_refused_in_one_sentence(value: object) -> None:
    with pytest.raises(SpecError) as caught:
        check_minutes("idle_minutes", value)
    message = str(caught.value)
    assert message.startswith("idle_minutes must be a number of minutes above 0 and up to 525600, ")
    assert "leave it out" in message
    assert "\n" not in message
    assert ". " not in message


@pytest.mark.parametrize("value", [None, 0.5, 60, 525_600])
def test_a_time_in_range_is_accepted(value: float | None) -> None:
    check_minutes("lease_minutes", value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (90, "90 s"),
        (120, "2 min"),
        (3569, "59 min"),
        (3600, "1 h"),
        (11100, "3 h 5 min"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
