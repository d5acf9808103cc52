"""A reporter that remembers what it was told."""

from sigma_jax.training.progress import Silent


class Listener(Silent):
    """`lines` in the order of their telling; bars are not kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)
