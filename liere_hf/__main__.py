"""`python -m liere_hf`, which `accelerate launch -m liere_hf` starts in each process."""

from .cli import main

main()
