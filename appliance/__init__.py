"""A private LLM service from bare machines: engines, gateway, tests of both.

Only :mod:`appliance.system.early` is imported here. It needs no dependency, because ``tools.bootstrap`` runs before
any is installed.
"""

from appliance.system import early as _early

__all__ = ["__version__"]
__version__ = "0.2.0"

del _early
