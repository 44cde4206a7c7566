"""The trigger that waits for a fine-tuning job."""

from __future__ import annotations

from include.fine_tuning.api import FineTuningApi
from include.jobs.trigger import PaidJobTrigger


class OpenAIFineTuneTrigger(PaidJobTrigger):
    """Wait for a fine-tuning job; see `PaidJobTrigger`."""

    def api(self) -> FineTuningApi:
        return FineTuningApi(self.connect)
