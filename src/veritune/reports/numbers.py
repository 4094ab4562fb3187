"""Numbers, shares and times as people read them."""

import math

MISSING = "–"
"""What stands where a value is not a number."""

_MINUS = "−"


def format_number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits: `0.500`, `12,345`, `5e-7`, `−1.50`, `∞`.

    Whole parts are never rounded away (12345.6 is `12,346`), and whole numbers have no decimals.
    """
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else f"{_MINUS}∞"
    size = abs(float(value))
    if size == 0:
        return "0"
    if size >= 1e9 or size < 1e-4:
        mantissa, exponent = f"{size:.{digits - 1}e}".split("e")
        text = f"{_without_trailing_zeros(mantissa)}e{int(exponent)}"
    else:
        decimals = 0 if size.is_integer() else max(0, digits - 1 - math.floor(math.log10(size)))
        text = f"{size:,.{decimals}f}"
    return f"{_MINUS}{text}" if value < 0 else text


def format_count(value: float) -> str:
    """A whole number with separators: `1,204,000`."""
    return f"{value:,.0f}" if math.isfinite(value) else MISSING


def format_share(value: float) -> str:
    """A fraction as a percentage: `71%`, `99.2%`; one decimal near both ends."""
    if not math.isfinite(value):
        return MISSING
    percent = 100 * value
    is_near_an_end = 0 < percent < 10 or 90 < percent < 100
    text = f"{abs(percent):.{1 if is_near_an_end else 0}f}%"
    return f"{_MINUS}{text}" if percent <= -0.5 else text


def format_seconds(value: float) -> str:
    """A duration: `0.42 s`, `12 s`, `4 min 10 s`, `2 h 5 min`, `3 d 4 h`."""
    if not math.isfinite(value):
        return MISSING
    if value < 9.95:
        return f"{format_number(value, 2)} s"
    seconds = round(value)
    for large, small, size, unit in (("d", "h", 86400, 3600), ("h", "min", 3600, 60)):
        if seconds >= size:
            return f"{seconds // size} {large} {seconds % size // unit} {small}"
    return f"{seconds} s" if seconds < 60 else f"{seconds // 60} min {seconds % 60} s"


def format_tick(value: float, step: float) -> str:
    """A tick's label with the decimals that its distance to the next tick asks for."""
    if abs(value) < step / 2:
        return "0"
    if abs(value) >= 1e9 or step < 1e-4:
        significant = math.floor(math.log10(abs(value))) - math.floor(math.log10(step)) + 1
        return format_number(value, max(1, significant))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    text = f"{abs(value):,.{decimals}f}"
    return f"{_MINUS}{text}" if value < 0 else text


def format_power_of_ten(exponent: int) -> str:
    """A label of a logarithmic axis: `0.01`, `1`, `1,000`, `1e-7`."""
    if -4 < exponent < 0:
        return f"{10.0**exponent:.{-exponent}f}"
    return f"{10**exponent:,}" if 0 <= exponent < 5 else f"1e{exponent}"


def _without_trailing_zeros(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text
