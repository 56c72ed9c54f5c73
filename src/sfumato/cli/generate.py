"""`sfumato generate MODEL --prompt ...`: PNGs that carry their settings."""

from sfumato.cli import made
from sfumato.tasks.requests import Generate

command = made.command(Generate)
