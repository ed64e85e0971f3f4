"""`python -m voken`, the command `voken` where no script of that name is on the path."""

import sys

from voken_common.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
