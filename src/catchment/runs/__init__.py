"""Where results live: content-addressed cells of item rows, the output folder that holds them, and who runs them."""

from catchment.runs import processes
from catchment.runs.cells import canonical_json, cell_key
from catchment.runs.columns import Columns
from catchment.runs.executors import Executor, LocalExecutor, executor
from catchment.runs.files import make_folder, open_atomic, read_json, write_atomic
from catchment.runs.folders import claim_folder
from catchment.runs.leases import Holder, Lease, Leases
from catchment.runs.store import Cell, Store, StoreWarning, append_all
from catchment.runs.workers import Outcome

__all__ = [
    "Cell",
    "Columns",
    "Executor",
    "Holder",
    "Lease",
    "Leases",
    "LocalExecutor",
    "Outcome",
    "Store",
    "StoreWarning",
    "append_all",
    "canonical_json",
    "cell_key",
    "claim_folder",
    "executor",
    "make_folder",
    "open_atomic",
    "processes",
    "read_json",
    "write_atomic",
]
