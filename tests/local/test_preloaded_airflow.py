"""The local stack's Airflow differs from any other in few places."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from airflow.sdk.execution_time.supervisor import WatchedSubprocess

from local.preloaded_airflow import notice_ends_soon


def end_a_while_after_the_sockets() -> None:
    os.closerange(0, 256)
    time.sleep(0.3)
    os._exit(7)


def test_a_process_that_ends_after_its_sockets_is_noticed_without_waiting_for_a_heartbeat(monkeypatch):
    monkeypatch.setattr(WatchedSubprocess, "_service_subprocess", WatchedSubprocess._service_subprocess)
    notice_ends_soon()
    process: Any = WatchedSubprocess.start(target=end_a_while_after_the_sockets, id="of-a-task")

    def supervise() -> None:
        while process._exit_code is None:
            process._service_subprocess(3600)

    supervisor = threading.Thread(target=supervise, daemon=True)
    supervisor.start()
    supervisor.join(60)
    assert process._exit_code == 7
