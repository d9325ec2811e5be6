"""A workaround for ipykernel: messages of a control that arrive while a cell is running."""

from __future__ import annotations

from typing import Any


def ack_widget_messages(control: Any) -> None:
    """Tell the page that a control's message was handled, even while a cell is running.

    ipywidgets sends the next value of a control only after that. ipykernel 7 does not report it
    for a message that arrives while a cell awaits: the second move of a slider would be lost.
    """
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return

    def handle(message: dict[str, Any]) -> None:
        control._handle_msg(message)
        for state in ("idle", "busy"):  # "busy" again, since the cell is still running
            kernel.session.send(
                kernel.iopub_socket,
                "status",
                {"execution_state": state},
                parent=message,
                ident=kernel._topic("status"),
            )

    control.comm.on_msg(handle)
