"""Keeps the suite off the network: deepctr_torch, when imported, asks for updates by `requests`, in a thread."""

import sys
import types

sys.modules["requests"] = types.ModuleType("requests")  # without `get`, the question cannot be asked
