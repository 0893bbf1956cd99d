"""The table of what was measured, after the last test."""

COLUMNS = ("logits", "training logits", "gradients")


def pytest_terminal_summary(terminalreporter):
    import parity

    if not parity.MEASURED:
        return
    terminalreporter.section("largest relative differences")
    terminalreporter.write_line(f"| peer | model | {' | '.join(COLUMNS)} |")
    terminalreporter.write_line("|---|---|" + "---|" * len(COLUMNS))
    for (peer, name), found in parity.MEASURED.items():
        numbers = [f"{found[what]:.1e}" if what in found else "" for what in COLUMNS]
        terminalreporter.write_line(f"| {peer} | {name} | {' | '.join(numbers)} |")
