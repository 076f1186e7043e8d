"""The ends of the services' logs."""

from pathlib import Path


def tail(path: Path, lines: int = 25) -> str:
    """Returns the last lines of a log, indented."""
    text = path.read_text(errors="replace") if path.is_file() else ""
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (empty)"


def describe_dead_service(logs: Path) -> str:
    """Returns which service ended first, by honcho's log, with the end of its own log."""
    for line in (logs / "honcho.log").read_text(errors="replace").splitlines():
        if " stopped (rc=" in line:
            # honcho numbers the processes of a service: scheduler.1
            name = line.split("|", 1)[-1].split(" stopped", 1)[0].strip().rpartition(".")[0]
            return f"The service {name} ended. {logs / f'{name}.log'} ends with:\n{tail(logs / f'{name}.log')}"
    return f"The services ended. {logs / 'honcho.log'} ends with:\n{tail(logs / 'honcho.log')}"
