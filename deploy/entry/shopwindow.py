"""`python -m shopwindow`."""

import sys

from deploy.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
