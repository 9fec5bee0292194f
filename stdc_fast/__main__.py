"""``python -m stdc_fast`` is ``stdc-fast``; torchrun starts it so."""

from stdc_fast.cli import main

main()
