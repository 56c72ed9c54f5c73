"""`python -m sfumato`, and so `torchrun -m sfumato`."""

from sfumato.cli import main

main()
