"""`python -m liere_hf_cli`, which `accelerate launch -m liere_hf_cli` starts in each process: `liere-hf`."""

from .main import main

main()
