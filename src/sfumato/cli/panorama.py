"""`sfumato panorama MODEL --width 512`: larger than trained."""

from sfumato.cli import made
from sfumato.tasks.requests import Panorama

command = made.command(Panorama)
