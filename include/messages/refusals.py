"""Messages that a topic or queue refuses. Not in the contract, which senders use without Airflow."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import AirflowException


class Refused(AirflowException):
    """A topic or queue refuses this message. It may accept others, and later this one."""


class TooLarge(Refused):
    """The message is larger than its topic or queue allows."""
