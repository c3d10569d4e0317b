"""Try the lint on seeded mutations of the shipped gin files: `python -m tests.config.try_mutations SEED COUNT`."""

import os
import sys
import tempfile
from pathlib import Path

from t_elaine.config import lint
from tests.config.test_lint_mutations import tried

if __name__ == "__main__":
    seed, count = map(int, sys.argv[1:])
    os.chdir(tempfile.mkdtemp())
    missed, kinds = tried(lint.shipped_file_sets(), count, seed, Path.cwd())
    print(f"seed {seed}: {count - len(missed)} of {count} mutations of {len(lint.shipped_file_sets())} files caught")
    print("by kind: " + ", ".join(f"{kind} {made}" for kind, made in sorted(kinds.items())))
    print("\n\n".join(missed))
