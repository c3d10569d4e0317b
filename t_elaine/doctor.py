"""The command `doctor`: what this machine has and what is missing. It works where nothing else does, JAX included."""

import dataclasses
import json
import sys
from collections.abc import Sequence

from t_elaine import checkup, cli
from t_elaine.errors import UserError

HELP = """t-elaine doctor: what this machine has and what is missing. Exit code 0 if training is possible here, else 2.

flags:
  --json       the same as one JSON list
  --network    ask the hub and the object store whether they answer; otherwise nothing leaves this machine
  --help       this page"""


def doctor(*, as_json: bool = False, network: bool = False) -> int:
    """Print a line for each thing looked at, "missing" only for what training cannot do without."""
    found = checkup.checks(network)
    if as_json:
        print(json.dumps([dataclasses.asdict(check) for check in found], indent=1, ensure_ascii=False))
    else:
        for check in found:
            print(f"{check.state:8}{check.name:14}{check.told}")
            if check.mend:
                print(f"{'':22}mend: {check.mend}")
    missing = [check.name for check in found if check.state == "missing"]
    if not as_json:
        print(f"training is not possible here: {', '.join(missing)}" if missing else "training is possible here")
    return 2 if missing else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return cli.guarded(lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(HELP)
        return 0
    unknown = [argument for argument in arguments if argument not in ("--json", "--network")]
    if unknown:
        raise UserError(f"unknown argument {unknown[0]!r}", "t-elaine doctor", "flags: --json, --network, --help")
    return doctor(as_json="--json" in arguments, network="--network" in arguments)


if __name__ == "__main__":
    sys.exit(main())
