"""A mail server of the tests, which keeps what it gets and answers as it is told."""

import email
import email.policy
import socket

from aiosmtpd.controller import Controller
from settings_samples import changed

from cxr_ml.settings import Settings


class Sink:
    """Keeps what it gets; answers otherwise where a list holds an answer."""

    def __init__(self):
        self.mails, self.rcpt, self.data, self.quit = [], [], [], []

    async def handle_RCPT(self, server, session, envelope, address, options):
        answer = self.rcpt.pop(0) if self.rcpt else "250 OK"
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server, session, envelope):
        answer = self.data.pop(0) if self.data else "250 OK"
        if answer.startswith("250"):
            self.mails.append((tuple(envelope.rcpt_tos), envelope.content, session))
        return answer

    async def handle_QUIT(self, server, session, envelope):
        return self.quit.pop(0) if self.quit else "221 Bye"

    def parsed(self, number=0):
        return email.message_from_bytes(self.mails[number][1], policy=email.policy.default)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def started(**how) -> Controller:
    """A server that listens, and whose `handler` is a Sink."""
    controller = Controller(Sink(), hostname="127.0.0.1", port=free_port(), **how)
    controller.start()
    return controller


def at(controller: Controller, settings: Settings, **changes) -> Settings:
    """The settings with this server as the mail server."""
    return changed(settings, **{"smtp_host": "127.0.0.1", "smtp_port": controller.port, **changes})
