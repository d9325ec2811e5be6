"""Requests of a baseline, and the errors of a full memory."""

from __future__ import annotations

import pytest

from serving.baselines.requests import ActiveRequest, Job, is_out_of_memory


class TestRequests:
    def test_request_ends_at_its_length_or_at_an_end_token(self) -> None:
        end = frozenset({2})
        ignoring, stopping = (
            ActiveRequest(Job(0, [9], 2, True)),
            ActiveRequest(Job(1, [9], 5, False)),
        )
        assert [ignoring.append(2, end).finish, ignoring.append(7, end).finish] == [None, "length"]
        assert [stopping.append(7, end).finish, stopping.append(2, end).finish] == [None, "stop"]
        assert (ignoring.ended, stopping.ended) == (True, True)
        assert (stopping.token_ids, stopping.remaining) == ([9, 7, 2], 3)

    def test_out_of_memory_errors_are_recognized(self) -> None:
        import torch

        with pytest.raises(RuntimeError) as caught:
            torch.empty(10**16, dtype=torch.uint8)
        assert is_out_of_memory(caught.value)
        assert is_out_of_memory("CUDA out of memory. Tried to allocate 2.00 GiB.")
        assert not is_out_of_memory(RuntimeError("shapes do not match"))
