"""The trigger that waits for a batch."""

from __future__ import annotations

from include.batch_api.api import BatchApi
from include.jobs.trigger import PaidJobTrigger


class OpenAIBatchTrigger(PaidJobTrigger):
    """Wait for a batch; see `PaidJobTrigger`."""

    def api(self) -> BatchApi:
        return BatchApi(self.connect)
