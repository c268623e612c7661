"""The processes that share an evaluation."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

from aim_lightning.utils.errors import UserError

Item = TypeVar("Item")


class Ranks:
    """This process among all; alone where no process group exists."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.world_size = dist.get_world_size() if together else 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every world_size-th item, from this process's own on."""
        return items[self.rank :: self.world_size]

    def from_first(self, value: Any) -> Any:
        """The first process's value, in all of them; every process must call it. Also a barrier."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def ask_first(self, work: Callable[[], Item]) -> Item:
        """What `work` gives on the first process, in all of them, every one of which must call it; for what depends on
        the disk, which need not look alike everywhere.

        Raises:
            UserError, OSError: that of `work`, in all of them.
        """
        answer, problem = None, None
        if self.is_first:
            try:
                answer = work()
            except (UserError, OSError) as error:
                problem = error
        answer, problem = self.from_first((answer, problem))
        if problem is not None:
            raise problem
        return answer

    def each(self, work: Callable[[], Item]) -> Item:
        """What `work`, which must not wait for other processes, gives here; every process must call it.

        Raises:
            UserError, OSError: that of the first process whose `work` raised one, in all of them once all are through.
        """
        answer, problem = None, None
        try:
            answer = work()
        except (UserError, OSError) as error:
            problem = error
        problem = next((one for one in self.all(problem) if one is not None), None)
        if problem is not None:
            raise problem
        return answer

    def all(self, value: Any) -> list[Any]:
        """The values of all processes in order; every process must call it."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values
