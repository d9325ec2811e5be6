"""The two simulations against cases worked out by hand, and the figures against them."""

from __future__ import annotations

import random

import pytest

from workbench.teaching.batching import IDLE, continuous, static
from workbench.teaching.figures import batching_figure, paging_figure
from workbench.teaching.paging import FREE, Moment, PagingRequest, contiguous, paged

THREE = [PagingRequest(2, 2), PagingRequest(3, 1), PagingRequest(1, 3)]


def picture(moment: Moment) -> str:
    """A character per slot: '.' is free, a capital a token, a small letter held and empty."""
    cells = zip(moment.owner, moment.written, strict=True)
    return "".join("." if o == FREE else ["Aa", "Bb", "Cc"][o][not w] for o, w in cells)


class TestContiguous:
    def test_by_hand(self) -> None:
        """Ten slots, 4 reserved per answer: A needs 6, B 7 and C 5, so only one fits at a time."""
        moments = contiguous(THREE, slots=10, reserve=4)
        assert [picture(moment) for moment in moments] == [
            "AAAaaa....",
            "AAAAaa....",
            "BBBBbbb...",
            "CCccc.....",
            "CCCcc.....",
            "CCCCc.....",
        ]
        assert [moment.waiting for moment in moments] == [(1, 2), (1, 2), (2,), (), (), ()]
        assert [moment.done for moment in moments] == [0, 0, 1, 2, 2, 2]
        assert moments[0].waste == 3 / 6
        assert moments[2].waste == pytest.approx(3 / 7)

    def test_request_needs_a_single_gap(self) -> None:
        """B frees 4 of 12 slots, but D needs 5 in one piece: it waits until A and C have ended."""
        requests = [
            PagingRequest(1, 3),
            PagingRequest(1, 1),
            PagingRequest(1, 3),
            PagingRequest(2, 1),
        ]
        moments = contiguous(requests, slots=12, reserve=3)
        assert moments[0].owner == (0,) * 4 + (1,) * 4 + (2,) * 4
        assert moments[1].owner == (0,) * 4 + (FREE,) * 4 + (2,) * 4, (
            "D needs 5, and only 4 are free"
        )
        assert moments[1].waiting == (3,)
        assert moments[3].owner[:5] == (3,) * 5

    @pytest.mark.parametrize("request_", [PagingRequest(1, 5), PagingRequest(7, 1)])
    def test_request_that_never_fits_is_rejected(self, request_: PagingRequest) -> None:
        with pytest.raises(ValueError, match="request 0"):
            contiguous([request_], slots=10, reserve=4)


class TestPaged:
    def test_by_hand(self) -> None:
        """Five blocks of two: all three are admitted at once, where contiguous had room for one."""
        moments = paged(THREE, slots=10, block=2)
        assert [picture(moment) for moment in moments] == ["AAAaBBBBCC", "AAAACc..CC", "....CC..CC"]
        assert moments[1].tables == {0: (0, 1), 2: (4, 2)}, "C's second block lies before its first"
        assert [moment.done for moment in moments] == [0, 1, 2]
        assert [moment.waiting for moment in moments] == [(), (), ()]

    def test_newest_request_is_preempted_and_keeps_its_tokens(self) -> None:
        """Four blocks of one token. A needs a third: B loses its two, and waits for three."""
        moments = paged([PagingRequest(1, 3), PagingRequest(1, 2)], slots=4, block=1)
        assert [picture(moment) for moment in moments] == ["AABB", "AAA.", "AAAA", "BBB."]
        assert [moment.waiting for moment in moments] == [(), (1,), (1,), ()]
        assert moments[-1].preempted == 1

    def test_waste_is_below_one_block_per_request(self) -> None:
        rng = random.Random(5)
        requests = [PagingRequest(rng.randint(1, 20), rng.randint(1, 30)) for _ in range(20)]
        for moment in paged(requests, slots=128, block=8):
            assert moment.held - moment.used < 8 * len(moment.tables)

    def test_every_request_is_completed_on_both_sides(self) -> None:
        """The last step of each request has its prompt and output tokens, despite preemptions."""
        rng = random.Random(7)
        requests = [PagingRequest(rng.randint(1, 9), rng.randint(1, 9)) for _ in range(15)]
        for moments in (contiguous(requests, 40, 9), paged(requests, 40, 4)):
            last: dict[int, int] = {}
            for moment in moments:
                written = zip(moment.owner, moment.written, strict=True)
                held = [owner for owner, token in written if token]
                last |= {number: held.count(number) for number in moment.tables}
            assert last == {i: sum(request) for i, request in enumerate(requests)}

    def test_request_that_never_fits_is_rejected(self) -> None:
        with pytest.raises(ValueError, match="longer than slots = 10"):
            paged([PagingRequest(5, 6)], slots=10, block=2)
        with pytest.raises(ValueError, match="multiple of block = 3, got 10"):
            paged(THREE, slots=10, block=3)


class TestBatching:
    def test_static_by_hand(self) -> None:
        """Lengths 4, 1 and 2, 1 in two slots: four steps, then two, and four idle cells."""
        table = static([4, 1, 2, 1], slots=2)
        assert table.cells == ((0, 1), (0, IDLE), (0, IDLE), (0, IDLE), (2, 3), (2, IDLE))
        assert (table.steps, table.tokens, table.idle) == (6, 8, 4)
        assert table.efficiency == pytest.approx(8 / 12)
        assert table.ends() == {0: 4, 1: 1, 2: 6, 3: 5}

    def test_continuous_by_hand(self) -> None:
        table = continuous([4, 1, 2, 1], slots=2)
        assert table.cells == ((0, 1), (0, 2), (0, 2), (0, 3))
        assert (table.steps, table.tokens, table.idle, table.efficiency) == (4, 8, 0, 1.0)
        assert table.ends() == {0: 4, 1: 1, 2: 3, 3: 4}

    def test_equal_lengths_make_no_difference(self) -> None:
        assert static([5] * 6, 3) == continuous([5] * 6, 3)

    def test_last_batch_may_be_partial(self) -> None:
        assert static([1, 1, 2], 2).cells == ((0, 1), (2, IDLE), (2, IDLE))
        assert continuous([1, 1, 2], 2).cells == ((0, 1), (2, IDLE), (2, IDLE))

    @pytest.mark.parametrize(("lengths", "slots"), [([], 1), ([0], 1), ([1], 0)])
    def test_invalid_input_is_rejected(self, lengths: list[int], slots: int) -> None:
        for batching in (static, continuous):
            with pytest.raises(ValueError, match="at least one length"):
                batching(lengths, slots)


class TestFigures:
    def test_frames_and_slider_have_the_same_steps(self) -> None:
        left, right = contiguous(THREE, 10, 4), paged(THREE, 10, 2)
        figure = paging_figure(left, right, 2)
        assert [frame.name for frame in figure.frames] == [str(i) for i in range(6)]
        assert [step.args[0][0] for step in figure.layout.sliders[0].steps] == [
            frame.name for frame in figure.frames
        ]
        first = figure.frames[0]
        assert "1 running, 2 waiting" in first.layout.annotations[0].text
        assert "50% of the held slots are empty" in first.layout.annotations[0].text
        # Three requests: 1 to 3 are tokens, 4 to 6 their empty slots, 0 is free.
        assert list(first.data[0].z[0]) == [1, 1, 1, 4, 4, 4, 0, 0, 0, 0]
        assert list(first.data[1].z[0]) == [1, 1, 1, 4, 2, 2, 2, 2, 3, 3]
        assert figure.frames[1].data[2].text[2][1] == "2"
        assert "all requests served" in figure.frames[5].layout.annotations[1].text

    def test_batching_frame_shows_the_steps_so_far(self) -> None:
        figure = batching_figure(static([4, 1, 2, 1], 2), continuous([4, 1, 2, 1], 2))
        assert len(figure.frames) == 6
        second = figure.frames[1]
        assert list(second.data[0].z[1])[:2] == [2, 0], "slot 1 produced B's token, then idled"
        assert "3 tokens in 2 steps; 25% of the slots idle" in second.layout.annotations[0].text
        assert "all served after 4; 0%" in figure.frames[5].layout.annotations[1].text
        assert figure.layout.sliders[0].active == 5
