"""What the tests of figures share."""

import io

from matplotlib.figure import Figure


def is_drawn(figure):
    """Return whether this is a figure that can be saved, without a warning."""
    assert isinstance(figure, Figure)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=50)
    return len(stream.getvalue()) > 2000


def titles(figure):
    """Return the titles of all axes in one string."""
    texts = []
    for axes in figure.axes:
        texts += [axes.get_title("left"), axes.get_title("center")]
    return " ".join(texts)


def pixels(axes):
    """Return the numbers of the image in these axes, zero where it is masked."""
    return axes.images[0].get_array().filled(0)
