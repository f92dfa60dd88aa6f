"""A process that learns while it runs that it cannot do its work."""

EXIT_REFUSED = 3
"""Somebody else refuses this process: started again as it is, it would end the same."""


class GivingUp:
    """Asked regularly by `serve`, which ends the process in order: the reason on standard error, `EXIT_REFUSED`."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def because(self, reason: str) -> None:
        """`reason`: one sentence for the operator, what is wrong and what would be right. The first one counts."""
        if self.reason is None:
            self.reason = reason
