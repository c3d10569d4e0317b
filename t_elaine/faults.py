"""Named kill points for the fault tests: where a test asks, the process kills itself as the machine would.

`T_ELAINE_KILL_AT="prepare.before_marker:3"` sends SIGKILL, or the signal that `T_ELAINE_KILL_WITH` names, the third
time that point is reached. Otherwise a no-op.
"""

import os
import signal
from collections import Counter

_reached: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Send the signal if the variable T_ELAINE_KILL_AT names this point: `name`, or `name:n` for the n-th visit."""
    wanted, _, visit = os.environ.get("T_ELAINE_KILL_AT", "").partition(":")
    if wanted != name:
        return
    _reached[name] += 1
    if _reached[name] == int(visit or 1):
        os.kill(os.getpid(), signal.Signals[os.environ.get("T_ELAINE_KILL_WITH", "SIGKILL")])
