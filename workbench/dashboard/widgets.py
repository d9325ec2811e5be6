"""A control's messages from the page while a cell is running."""

from __future__ import annotations

from typing import Any


def answer_at_once(control: Any) -> None:
    """Have the page told that a control's message was dealt with, also while a cell is running.

    ipywidgets sends a control's next value only then, and ipykernel 7 does not say so of a message
    that comes while a cell awaits: the second movement of a slider would never arrive.
    """
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return

    def handle(message: dict[str, Any]) -> None:
        control._handle_msg(message)
        for state in ("idle", "busy"):  # busy again: the cell, or what ends this message's turn
            kernel.session.send(
                kernel.iopub_socket,
                "status",
                {"execution_state": state},
                parent=message,
                ident=kernel._topic("status"),
            )

    control.comm.on_msg(handle)
