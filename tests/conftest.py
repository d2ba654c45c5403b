"""What every test starts from: no network, and a machine profile that is the same everywhere."""

import os
import sys
import types
from pathlib import Path

# deepctr_torch, when imported, asks for updates by `requests`, in a thread; without `get` it cannot.
sys.modules["requests"] = types.ModuleType("requests")

# Plans follow predicted time. On real machines small models are not worth hoisting, and plans differ between machines;
# on this one calls are free, and every multiply-add and every element written costs the same.
os.environ["RANKHOIST_PROFILE"] = str(Path(__file__).with_name("profile.json"))
