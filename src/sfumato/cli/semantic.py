"""`sfumato semantic MODEL --map FILE`: what is where."""

from sfumato.cli import made
from sfumato.tasks.requests import Semantic

command = made.command(Semantic)
