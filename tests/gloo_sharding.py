"""``python -m tests.gloo_sharding tune ...``: the command line, where accelerate cuts weights over gloo on CPUs too.

It ignores FSDP there (``MULTI_CPU`` is none of the kinds it shards), although torch's FSDP2 works. Here it takes the
processes for those of an accelerator.
"""

import sys
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType

join = PartialState.__init__


def join_as_accelerators(self: Any, *args: Any, **options: Any) -> None:
    join(self, *args, **options)
    if self._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_HPU


if __name__ == "__main__":
    from catchment.cli import main

    PartialState.__init__ = join_as_accelerators  # type: ignore[method-assign]
    sys.exit(main())
