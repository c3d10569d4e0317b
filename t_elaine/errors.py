"""The one error that speaks to a person: what is wrong, where, how to mend.

Commands print a `UserError` as three parts and exit with code 2; every other exception is a bug of ours.
"""

import errno

# What the system says of a full disk or a spent quota.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class UserError(Exception):
    """A mistake that the user can mend.

    Args:
        what: what is wrong, in one sentence, with the offending value.
        where: the file, line, setting or folder it concerns ("" if it concerns the whole command).
        mend: what to do about it; a value or command that works.
    """

    def __init__(self, what: str, where: str = "", mend: str = "") -> None:
        self.what, self.where, self.mend = what, where, mend
        super().__init__(self.text())

    def text(self) -> str:
        """The message as printed: one line for each part that is not empty."""
        parts = [("error", self.what), ("where", self.where), ("mend", self.mend)]
        return "\n".join(f"{label}: {value}" for label, value in parts if value)

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, str]]:
        """Errors cross process borders whole: multiprocessing copies exceptions by their arguments."""
        return UserError, (self.what, self.where, self.mend)
