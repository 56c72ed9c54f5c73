"""`sfumato vary MODEL --picture FILE`: other pictures like a given one."""

from sfumato.cli import made
from sfumato.tasks.requests import Vary

command = made.command(Vary)
