"""`sfumato upscale MODEL --picture FILE`: a larger picture."""

from sfumato.cli import made
from sfumato.tasks.requests import Upscale

command = made.command(Upscale)
