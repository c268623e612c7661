"""The exceptions that are told in one line, without a traceback."""


class UserError(Exception):
    """A mistake of the user's or of their files: one line that says what, where and how to mend it.

    The command line prints it without a traceback and ends with exit code 2.
    """


class PassingFault(UserError):
    """What another start may mend by itself: a network, or a disk of several nodes, that fails for a while.

    `fit` ends with `exit_code`, with which job.sbatch puts the job back into the queue.
    """

    exit_code = 74
