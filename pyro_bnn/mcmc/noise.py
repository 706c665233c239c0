"""The random numbers of many chains.

Each chain has its own stream of random numbers, so a chain does not depend on the number of
chains beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Noise", "RandomNumbers"]

NUMBERS_AHEAD = 16_384  # drawn in one call, which costs microseconds


class RandomNumbers(NamedTuple):
    """The random numbers of one step.

    Attributes:
        normal: Standard normal numbers, (chains, D).
        uniform: Uniform numbers between 0 and 1, (chains,).
        examples: Indices of the examples of a minibatch, (chains, B).
    """

    normal: Tensor
    uniform: Tensor
    examples: Tensor


class Noise:
    """The random numbers of a run, step after step.

    Examples are drawn with replacement, independently at every step, so the noise of a minibatch
    is unbiased and white.

    Args:
        seed: Seed of the run. Chain c of two runs with one seed sees the same numbers, whatever
            the number of chains.
        chains: Number of chains.
        size: D, the number of normal numbers for each chain.
        like: A tensor with the device and the dtype of the normal numbers.
        batch_size: B, or 0 where no minibatches are drawn.
        num_data: N, the number of examples.
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
        self.steps_ahead = max(1, NUMBERS_AHEAD // (size + batch_size + 1))
        self.generators = []
        for chain in range(chains):
            generator = torch.Generator(self.device).manual_seed(_seed_of_chain(seed, chain))
            self.generators.append(generator)
        self.states: list[Tensor] = []
        self.used = self.steps_ahead

    def next(self) -> RandomNumbers:
        """Return the numbers of the next step."""
        if self.used == self.steps_ahead:
            self._draw_ahead()
        step, self.used = self.used, self.used + 1
        return RandomNumbers(self.normal[step], self.uniform[step], self.examples[step])

    def _draw_ahead(self) -> None:
        self.states = [generator.get_state() for generator in self.generators]
        self.used = 0
        # (step, chain, ...): the numbers of one step are contiguous, as a compiled function
        # expects of its arguments
        shape = (self.steps_ahead, len(self.generators))
        self.normal = torch.empty(*shape, self.size, dtype=self.dtype, device=self.device)
        self.uniform = torch.empty(shape, device=self.device)
        self.examples = torch.empty(*shape, self.batch_size, dtype=torch.long, device=self.device)
        for chain, generator in enumerate(self.generators):
            self._draw_chain(chain, generator)

    def _draw_chain(self, chain: int, generator: torch.Generator) -> None:
        steps, device = self.steps_ahead, self.device
        if steps == 1:  # many weights: draw in place
            self.normal[0, chain].normal_(generator=generator)
        else:
            self.normal[:, chain] = torch.randn(
                steps, self.size, generator=generator, dtype=self.dtype, device=device
            )
        self.uniform[:, chain] = torch.rand(steps, generator=generator, device=device)
        self.examples[:, chain] = torch.randint(
            max(1, self.num_data), (steps, self.batch_size), generator=generator, device=device
        )

    def state(self) -> dict[str, Tensor]:
        """Return the position in the streams."""
        if not self.states:
            self._draw_ahead()
        return {"generators": torch.stack(self.states), "used": torch.tensor(self.used)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a position that :meth:`state` returned."""
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.set_state(saved.clone())
        self._draw_ahead()
        self.used = int(state["used"])


def _seed_of_chain(seed: int, chain: int) -> int:
    """Return the seed of one chain, far from those of neighbouring seeds and chains.

    The finaliser of SplitMix64 mixes the two numbers.
    """
    value = (seed * 0x9E3779B97F4A7C15 + chain * 0xD1B54A32D192ED03 + 1) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ value >> shift) * factor % 2**64
    return (value ^ value >> 31) % 2**63
