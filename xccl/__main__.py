"""`python -m xccl`: see xccl/cli."""

from xccl.cli import entry_point

if __name__ == "__main__":
    entry_point()
