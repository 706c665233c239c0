"""Random numbers of many chains: each chain has its own stream, which does not depend on how many others run beside
it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Noise", "Numbers"]


class Numbers(NamedTuple):
    """What one step may use: normal (chains, D), uniform (chains,), and the examples of a minibatch (chains, B)."""

    normal: Tensor
    uniform: Tensor
    examples: Tensor


class Noise:
    """The random numbers of a run, step after step.

    Examples are drawn with replacement, independently at every step, so that the noise of a minibatch is unbiased and
    white.

    Args:
        seed: of the run; chain c of two runs with one seed sees the same numbers, whatever the number of chains.
        chains: how many.
        size: D.
        like: a tensor of the device and the dtype of the normal numbers.
        batch_size: B, or 0 where no minibatches are drawn.
        num_data: N.
    """

    def __init__(
        self,
        seed: int,
        chains: int,
        size: int,
        like: Tensor,
        batch_size: int = 0,
        num_data: int = 0,
    ) -> None:
        self.size, self.batch_size, self.num_data = size, batch_size, num_data
        self.dtype, self.device = like.dtype, like.device
        self.ahead = max(
            1, 16_384 // (size + batch_size + 1)
        )  # steps drawn in one go: a call costs microseconds
        self.generators = [
            torch.Generator(self.device).manual_seed(_mixed(seed, chain)) for chain in range(chains)
        ]
        self.states: list[Tensor] = []
        self.used = self.ahead

    def next(self) -> Numbers:
        """Return the numbers of the next step."""
        if self.used == self.ahead:
            self._draw_ahead()
        step, self.used = self.used, self.used + 1
        return Numbers(self.normal[step], self.uniform[step], self.examples[step])

    def _draw_ahead(self) -> None:
        self.states = [generator.get_state() for generator in self.generators]
        self.used, k = 0, self.ahead
        own: dict[str, Any] = {"device": self.device}
        # (step, chain, ...): those of one step lie side by side, as a compiled function expects of its arguments
        shape = (k, len(self.generators))
        self.normal = torch.empty(*shape, self.size, dtype=self.dtype, **own)
        self.uniform = torch.empty(shape, **own)
        self.examples = torch.empty(*shape, self.batch_size, dtype=torch.long, **own)
        for chain, g in enumerate(self.generators):
            if k == 1:  # many weights: in place
                self.normal[0, chain].normal_(generator=g)
            else:
                self.normal[:, chain] = torch.randn(
                    k, self.size, generator=g, dtype=self.dtype, **own
                )
            self.uniform[:, chain] = torch.rand(k, generator=g, **own)
            self.examples[:, chain] = torch.randint(
                max(1, self.num_data), (k, self.batch_size), generator=g, **own
            )

    def state(self) -> dict[str, Tensor]:
        """Return where the streams are."""
        if not self.states:
            self._draw_ahead()
        return {"generators": torch.stack(self.states), "used": torch.tensor(self.used)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from there."""
        for generator, own in zip(self.generators, state["generators"], strict=True):
            generator.set_state(own.clone())
        self._draw_ahead()
        self.used = int(state["used"])


def _mixed(seed: int, chain: int) -> int:
    """Return a seed for one chain: neighbouring seeds and chains lie far apart (the finaliser of SplitMix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + chain * 0xD1B54A32D192ED03 + 1) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ value >> shift) * factor % 2**64
    return (value ^ value >> 31) % 2**63
