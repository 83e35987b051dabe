"""Barrier for the nodes of a SLURM step, before torchrun starts; reports the missing ones.

    srun --ntasks-per-node=1 bash -c 'python -m codyra_llm.cli.roll_call 300 && exec torchrun ...'

torchrun itself waits for its agents before any rank runs, and only counts them. MASTER_ADDR and MASTER_PORT are those
of this roll call; its one argument is how many seconds it waits.
"""

import sys
import time

from codyra_llm.command import main
from codyra_llm.distributed.environment import hosts_of_step, this_process
from codyra_llm.distributed.rendezvous import meet
from codyra_llm.errors import UserError


def roll_call() -> None:
    """Returns once every node of the step has arrived; at once outside of a multi-node step."""
    node = this_process()
    if node is None:
        return
    try:
        seconds = float(sys.argv[1])
    except ValueError:
        raise UserError(f"RENDEZVOUS_SECONDS is {sys.argv[1]!r}, not a number of seconds") from None
    store = meet(node, seconds, "node", hosts_of_step())
    store.add("gone", 1)
    while node.rank == 0 and store.add("gone", 0) < node.size:  # the store goes with node 0
        time.sleep(0.05)


if __name__ == "__main__":
    main(roll_call)
