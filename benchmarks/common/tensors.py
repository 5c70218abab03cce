"""Random tensors for checks and measurements; never zeros, which cost a GPU less power and so run faster."""

from __future__ import annotations

import torch

from prunekit.kernels.tuning import measure

NAN = float("nan")


class Data(measure.Data):
    """Draws what ops take: weights, biases, caches, rotary tables."""

    def weight(self, *size: int) -> torch.Tensor:
        """Rows that keep the size of what they multiply."""
        return self.normal(*size, scale=size[-1] ** -0.5)

    def small(self, *size: int) -> torch.Tensor:
        """float32, around nought: a bias."""
        return self.normal(*size, dtype=torch.float32)

    def norm(self, size: int) -> torch.Tensor:
        """float32, around one: a norm's weight."""
        return 1 + 0.3 * self.small(size)

    def int8(self, *size: int) -> torch.Tensor:
        return torch.randint(-127, 128, size, generator=self._generator, device=self.device, dtype=torch.int8)

    def scale(self, *size: int) -> torch.Tensor:
        """float32, positive, such that int8 weights of 1000 columns keep the size of what they multiply."""
        return (0.5 + torch.rand(*size, generator=self._generator, device=self.device)) * 4e-4

    def rope(self, positions: int, channels: int, theta: float = 10000.0) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [positions, channels / 2], float32."""
        speed = theta ** (-torch.arange(0, channels, 2, device=self.device, dtype=torch.float32) / channels)
        angle = torch.arange(positions, device=self.device, dtype=torch.float32)[:, None] * speed
        return angle.cos(), angle.sin()

    def cache(self, batch: int, heads: int, places: int, head_dim: int, filled: int | list[int]) -> torch.Tensor:
        """[batch, heads, places, head_dim] with NaN where no token has been written: nobody may read that."""
        cache = self.normal(batch, heads, places, head_dim)
        lengths = [filled] * batch if isinstance(filled, int) else filled
        for row, length in zip(cache, lengths, strict=True):
            row[:, length:] = NAN
        return cache

    def ints(self, values: list[int] | range) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.int32, device=self.device)
