"""The demo's one exception, and the sentence that most of them end in.

Raised everywhere, shown by main.py. Not here: failed checks; those are results (checks.py).
"""

from __future__ import annotations

INSTALL_HINT = (
    "install what the demo needs: pip install -r examples/moe_llm/requirements.txt && "
    "pip install --no-deps -r examples/moe_llm/requirements-nodeps.txt (or run: make demo)"
)


class DemoError(Exception):
    """Something the user can put right; the message says how."""
