"""The trigger that waits for a fine-tuning job."""

from __future__ import annotations

from include.fine_tuning_jobs import FineTuningApi
from include.triggers.paid_job import PaidJobTrigger


class OpenAIFineTuneTrigger(PaidJobTrigger):
    """Wait for a fine-tuning job; see `PaidJobTrigger`."""

    def api(self) -> FineTuningApi:
        return FineTuningApi(self.connect)
