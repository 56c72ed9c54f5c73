"""`sfumato layout MODEL --box "dog 0.1 0.2 0.5 0.9"`: things stand where boxes say."""

from sfumato.cli import made
from sfumato.tasks.requests import Layout

command = made.command(Layout)
