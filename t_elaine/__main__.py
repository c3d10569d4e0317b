"""`python -m t_elaine <command>`."""

import sys

from t_elaine.cli import main

if __name__ == "__main__":
    sys.exit(main())
