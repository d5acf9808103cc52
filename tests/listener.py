"""A reporter that remembers what it received."""

from sigma_jax.training.progress import Silent


class Listener(Silent):
    """`lines` in the order in which they came; bars are not kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)
