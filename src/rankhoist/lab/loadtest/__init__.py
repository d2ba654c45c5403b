"""Load tests of a server: closed and open loop, and what they found (extra `client`; plots: extra `bench`)."""

from rankhoist.lab.loadtest.load import Load
from rankhoist.lab.loadtest.run import Options, loadtest, table

__all__ = ["Load", "Options", "loadtest", "table"]
