"""GPT with two narrow blocks: all that a strategy meets in gpt, tied embedding too, in a fraction of the time."""

from workloads.gpt import GPT, Shape
from workloads.options import resized


class ShortGPT(GPT):
    def __init__(self, size=None, data=None, *, sequence_length=16, **options):
        super().__init__(size, data, sequence_length=sequence_length, **options)
        self._shape = Shape(layers=2, heads=4, width=64, context=64, rows=256)
        self.traits = resized(self.traits, self._size, parameters=120576)
