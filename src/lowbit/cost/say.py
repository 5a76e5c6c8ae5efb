"""Figures as people read them, in the terminal and on the page."""

from __future__ import annotations

import math

from lowbit.cost.figures import Figure

NONE = "–"


def amount(value: float) -> str:
    """Three significant digits below a thousand, thousands separated above."""
    if value == 0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(places, 6)}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def money(value: float) -> str:
    """Whole dollars from 100 on, cents below, three digits below a dollar.

    >>> money(2336.0), money(31.4), money(0.04163), money(-5.0)
    ('$2,336', '$31.40', '$0.0416', '−$5.00')
    """
    size = abs(value)
    if size >= 99.995 or size == 0:
        text = f"${size:,.0f}"
    elif size >= 1:
        text = f"${size:.2f}"
    else:
        places = 2 - math.floor(math.log10(size))
        text = f"${size:.{min(places, 8)}f}"
    return f"−{text}" if value < 0 and text.strip("$0.") else text


def dollars(figure: Figure | None, ends: bool = True) -> str:
    """With its range where that shows."""
    if figure is None:
        return NONE
    low, high = map(money, figure.ends)
    return f"{money(figure.value)} ({low} to {high})" if ends and low != high else money(figure.value)


def number(figure: Figure | None, unit: str = "", ends: bool = True) -> str:
    """With unit and range."""
    if figure is None:
        return NONE
    low, high = map(amount, figure.ends)
    more = f" ({low} to {high})" if ends and low != high else ""
    return f"{amount(figure.value)}{f' {unit}' if unit else ''}{more}"


def share(figure: Figure | None) -> str:
    """As a percentage."""
    return NONE if figure is None else percent(figure.value)


def percent(value: float) -> str:
    """A share: 0.94 is "94 %"."""
    return f"{value * 100:.0f} %".replace("-0 %", "0 %").replace("-", "−")


PER = {"USD/h": " an hour", "USD/month": " a month", "USD/million": " per million requests", "USD/day": " a day"}


def any_unit(figure: Figure) -> str:
    """In its own unit, with its range."""
    if figure.unit.startswith("USD"):
        return dollars(figure) + figure.unit.removeprefix("USD").replace("/million", " per million").replace("/", " a ").replace(
            " a h", " an hour"
        )
    if figure.unit == "share":
        low, high = map(percent, figure.ends)
        return share(figure) + (f" ({low} to {high})" if low != high else "")
    if figure.unit == "×":
        return number(figure).replace(" (", "× (", 1) if figure.ranged else f"{amount(figure.value)}×"
    return number(figure, figure.unit.replace("/", " a ").replace(" a s", " a second"))
