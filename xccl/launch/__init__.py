"""Starting ranks, and finding out which rank this process is.

`environment` reads what a launcher said; `run` is the launcher of `python -m xccl run`; `spawn` starts ranks
from a test or a notebook. Nothing here moves data: ranks find each other in the native core, by the name of
their job.
"""
