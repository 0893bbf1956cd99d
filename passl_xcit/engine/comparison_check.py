"""What a device computes, compared with another one, as findings."""

import math

from passl_xcit.engine.device_comparison import compare_devices
from passl_xcit.engine.report import Finding, Section, Table
from passl_xcit.utils.errors import TrainingError

MOST_LISTED = 20


def check_computation(make_model, size, device, reference, tolerance, trouble=""):
    """Section of what a training step computes on `device`, compared with `reference`; see `compare_devices`.

    Args:
        tolerance: the relative difference that is borne.
        trouble: why `device` cannot be used; empty where it can.
    """
    name = f"{device}, {reference}"
    if trouble:
        return Section("comparison", [Finding(name, "not compared", "warning", f"{device} cannot be used")])
    try:
        found = compare_devices(make_model, size, device, reference)
    except TrainingError as error:
        return Section("comparison", [Finding(name, "the step failed", "error", str(error))])
    judged = [difference for difference in found if difference.is_judged(tolerance) and difference.absolute]
    worst = sorted(judged, key=lambda difference: (math.isfinite(difference.relative), -difference.relative))
    data = {
        "device": device,
        "reference": reference,
        "image_size": list(size),
        "tolerance": tolerance,
        "rows": [_as_json(difference, tolerance) for difference in found],
    }
    table = Table(("part", "of", "difference", "relative"), [_row(difference) for difference in worst[:MOST_LISTED]])
    return Section("comparison", _judged(device, reference, found, tolerance), table, data)


def _judged(device, reference, found, tolerance):
    """Findings on all differences, and on those that judge nothing."""
    beyond = [difference for difference in found if difference.is_beyond(tolerance)]
    judged = [difference for difference in found if difference.is_judged(tolerance)]
    value, advice = f"{len(judged)} outputs and gradients within {tolerance:.0e}{_largest(judged)}", ""
    if beyond:
        first, value = beyond[0], f"{len(beyond)} of {len(judged)} outputs and gradients beyond {tolerance:.0e}"
        advice = (
            f"{value}; the first is the {first.part} of {first.name}, {first.relative:.1e} off: look at the operators "
            "of that layer"
        )
    name = f"{device}, {reference}"
    findings = [Finding(name, value, "error" if beyond else "ok", advice)]
    if device == reference:
        advice = "name the device to look at: --device npu"
        findings.append(Finding("devices", "one, compared with itself", "warning", advice))
    if len(judged) < len(found):
        text = f"{len(found) - len(judged)} gradients, which small changes of the images change as much"
        findings.append(Finding("not judged", text))
    return findings


def _largest(judged):
    """Where the largest difference is."""
    worst = max(judged, key=lambda difference: difference.relative, default=None)
    if worst is None or not worst.relative:
        return ", all of them equal"
    return f"; the largest, {worst.relative:.1e}, is in the {worst.part} of {worst.name}"


def _row(difference):
    return [difference.part, difference.name, f"{difference.absolute:.1e}", f"{difference.relative:.1e}"]


def _as_json(difference, tolerance):
    numbers = {key: getattr(difference, key) for key in ("absolute", "relative", "unsteadiness")}
    finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
    return {"part": difference.part, "name": difference.name, **finite, "beyond": difference.is_beyond(tolerance)}
