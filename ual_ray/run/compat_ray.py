"""Where Ray's address "auto" leads, which Ray does not tell before it tries for minutes to connect there.

When tests/unit/run/test_compat_ray.py fails with another Ray: read what `ray.init` does with its address
(ray/_private/worker.py), and adapt this file.
"""

from ray._private.services import canonicalize_bootstrap_address


def where_auto_leads() -> str:
    """Find the address that Ray takes for "auto": RAY_ADDRESS, or that of a cluster of this machine; "" where there is none."""
    try:
        return canonicalize_bootstrap_address("auto") or ""
    except ConnectionError:  # which connecting raises too
        return ""
