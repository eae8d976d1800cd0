"""``python -m dmf_plugins`` is the ``dmf`` command."""

from dmf_plugins.cli import main

main()
