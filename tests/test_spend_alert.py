"""The alert of docs/spend.md: a day that cost too much is mailed."""

from __future__ import annotations

import email
import json
import re
import socketserver
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import PROJECT


class Mailbox(socketserver.StreamRequestHandler):
    """A fake of a mail server that keeps what it gets."""

    mails: list[str]

    def handle(self) -> None:
        self.wfile.write(b"220 fake\r\n")
        while line := self.rfile.readline():
            command = line[:4].upper()
            if command == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                self.mails.append(b"".join(iter(self.rfile.readline, b".\r\n")).decode())
            self.wfile.write(b"221 bye\r\n" if command == b"QUIT" else b"250 ok\r\n")
            if command == b"QUIT":
                return


@pytest.mark.parametrize(("spent", "mailed"), [(12.0, 0), (1234.5, 1)])
def test_a_day_that_cost_too_much_is_mailed_and_no_other(run_any_dag, monkeypatch, storage, spent, mailed):
    monkeypatch.setattr(Mailbox, "mails", [], raising=False)
    event = SimpleNamespace(extra={"day": "2026-11-25", "cost_usd": spent})
    monkeypatch.setattr("include.common.asset_events.triggering_events", lambda asset: [event])
    examples = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "spend.md").read_text(), re.DOTALL)
    (example,) = (each for each in examples if "def spend_alert" in each)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example.removesuffix("spend_alert()\n"), "docs/spend.md", "exec"), names)  # noqa: S102

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mailbox) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        extra = {"disable_ssl": True, "disable_tls": True}
        connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": server.server_address[1], "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps(connection))
        run = run_any_dag(names["spend_alert"]())
        server.shutdown()

    assert run.state == ("failed" if mailed else "success")
    assert len(Mailbox.mails) == mailed
    for mail in map(email.message_from_string, Mailbox.mails):
        (text,) = (part.get_payload(decode=True).decode() for part in mail.walk() if not part.is_multipart())
        assert "More than $50 were spent on a day." in text
        assert mail["To"] == "team@example.com"
