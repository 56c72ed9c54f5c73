"""`sfumato inpaint MODEL --picture FILE --mask FILE`: a hole is filled, or sides are added."""

from sfumato.cli import made
from sfumato.tasks.requests import Inpaint

command = made.command(Inpaint)
