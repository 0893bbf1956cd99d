"""Pictures that matplotlib draws without a screen, whatever pyplot is set to."""

from passl_xcit.utils.errors import ConfigError

DPI = 100


def new_figure(rows, columns, width, height):
    """(figure, axes [rows][columns]); each part `width` x `height` inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure, output, option="--output"):
    """Write a figure to the file `output`; raises ConfigError, which names `option`, where that cannot be."""
    try:
        figure.savefig(output, dpi=DPI)
    except (OSError, ValueError) as error:  # ValueError: a kind of picture that matplotlib does not write
        raise ConfigError(f"{option} {output}: {getattr(error, 'strerror', None) or error}") from error
