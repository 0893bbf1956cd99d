"""What every backbone can do besides its forward: give inner features, and take another project's maths."""

from paddle import nn

from passl_xcit.utils.registry import nearest


class Backbone(nn.Layer):
    """Base of the backbones.

    `MATHS` says in which constructor arguments another project's weights need another function, such as
    {"mindcv": {"act": "gelu_tanh"}}; these arguments are attributes of the same name. `stages` are the names that
    `extract` knows; a subclass defines it in its constructor, and `_extract`.
    """

    MATHS = {}
    HEAD = "SwinTransformerClsHead"  # what `create_model` puts on top
    stages = ()

    @property
    def maths(self):
        """The arguments named in MATHS with their present values."""
        return {name: getattr(self, name) for options in self.MATHS.values() for name in options}

    def set_maths(self, **options):
        """Compute from now on with these values of the arguments named in MATHS.

        Raises:
            ValueError: for another argument, or a value that its constructor would refuse.
        """
        kind = type(self).__name__
        if options and not self.maths:
            raise ValueError(f"{kind} has one way to compute only, no '{next(iter(options))}'")
        for name in options:
            if name not in self.maths:
                raise ValueError(f"{kind} has no other maths named '{name}'{nearest(name, self.maths)}")
        if options:
            self._set_maths(**{**self.maths, **options})

    def extract(self, images, stage):
        """Features of `images` [B, in_chans, H, W] at `stage`, one of `stages`.

        Raises:
            ValueError: for a stage that is not in `stages`; the text names them.
        """
        if stage not in self.stages:
            raise ValueError(f"{type(self).__name__} has no stage '{stage}'; known: {', '.join(self.stages)}")
        return self._extract(images, stage)
