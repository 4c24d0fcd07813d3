"""The settings of a fit as version 0.1.0 had them, with a patience of their own."""

from typing import Any, final

from ..sbi.settings import Settings, default_settings


@final
class Plan(Settings):
    """`Settings` in which `patience` and `every` are chosen freely, not by the number of steps."""

    _chosen: dict[str, int]

    def __new__(
        cls,
        steps: int,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
        width: int,
        depth: int,
        dropout: float,
        patience: int,
        every: int,
    ) -> "Plan":
        plan = Settings.__new__(
            cls,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            width=width,
            depth=depth,
            dropout=dropout,
        )
        plan._chosen = {"patience": patience, "every": every}
        return plan

    @property
    def patience(self) -> int:
        return self._chosen["patience"]

    @property
    def every(self) -> int:
        return self._chosen["every"]

    # pyright: ignore because `NamedTuple` makes it final; it knows only the fields of `Settings`.
    def _replace(self, **changes: Any) -> "Plan":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Plan(**(self._asdict() | self._chosen | changes))

    def with_steps(self, steps: int | None) -> "Plan":
        """The same plan over another number of steps, with the patience of that number."""
        return self if steps is None else _planned(Settings(*self).with_steps(steps))

    lasting = with_steps

    def network(self) -> dict[str, Any]:
        """The keywords of the default network."""
        return {"width": self.width, "depth": self.depth, "dropout": self.dropout}


def default_plan(count: int) -> Plan:
    """The default settings for `count` simulations to train on, as a plan."""
    return _planned(default_settings(count))


def _planned(settings: Settings) -> Plan:
    return Plan(*settings, settings.patience, settings.every)
