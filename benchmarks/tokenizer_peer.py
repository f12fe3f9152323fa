"""The peer of the suite `tokenizer`: LlamaGen's training step in PyTorch, in eager mode.

Encoder and decoder are transformers' JanusVQVAE, whose modules are those of LlamaGen. Its quantiser is not: it neither
normalises nor puts the factor on the commitment. So the quantiser, the discriminator, LPIPS and the losses are written
here after LlamaGen's code (`tokenizer/tokenizer_image`). Images are NCHW in [-1, 1].
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from janus_jax.models.config import VGG_CONVOLUTIONS, LPIPSConfig, PatchDiscriminatorConfig

Tensors = Mapping[str, np.ndarray]  # by the names of the original
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Weights(NamedTuple):
    """Of the loss: `config.loss` has the same fields."""

    perceptual: float
    adversarial: float
    commitment: float


class Discriminator(nn.Module):
    """LlamaGen's PatchGAN."""

    def __init__(self, config: PatchDiscriminatorConfig, tensors: Tensors):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, config.channels[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (before, channels) in enumerate(zip(config.channels, config.channels[1:], strict=False), start=1):
            stride = 2 if i < config.num_layers else 1
            layers += [nn.Conv2d(before, channels, 4, stride, 1, bias=False), nn.BatchNorm2d(channels)]
            layers.append(nn.LeakyReLU(0.2))
        layers.append(nn.Conv2d(config.channels[-1], 1, 4, 1, 1))
        self.main = nn.Sequential(*layers)
        self.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()})

    def forward(self, images: Any) -> Any:
        return self.main(images)


class LPIPS(nn.Module):
    """The distance of LPIPS, with its convolutions frozen."""

    def __init__(self, config: LPIPSConfig, tensors: Tensors):
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for i, (width, convolutions) in enumerate(zip(config.widths, VGG_CONVOLUTIONS, strict=True)):
            layers += [nn.MaxPool2d(2)] if i else []
            for _ in range(convolutions):
                layers += [nn.Conv2d(before, width, 3, 1, 1), nn.ReLU()]
                before = width
        self.features = nn.Sequential(*layers)
        self.heads = [torch.tensor(tensors[f"lin{i}.model.1.weight"]) for i in range(len(config.widths))]
        trunk = {name: torch.tensor(value) for name, value in tensors.items() if name.startswith("features.")}
        self.load_state_dict(trunk)
        self.requires_grad_(False)

    def forward(self, a: Any, b: Any) -> Any:
        pairs = zip(self._stages(a), self._stages(b), strict=True)
        return sum(
            functional.conv2d((_unit(x) - _unit(y)) ** 2, head).mean(dim=(1, 2, 3))
            for head, (x, y) in zip(self.heads, pairs, strict=True)
        )

    def _stages(self, x: Any) -> list[Any]:
        x = (x - torch.tensor(_SHIFT).view(1, 3, 1, 1)) / torch.tensor(_SCALE).view(1, 3, 1, 1)
        stages = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                stages.append(x)
            x = layer(x)
        return [*stages, x]


class Peer:
    """LlamaGen's step with the adversarial loss on from the start: generator first, then the discriminator."""

    def __init__(self, vq: Any, discriminator: Discriminator, lpips: LPIPS, weights: Weights, train: Any):
        """Args: train: `config.train`, for both optimizers."""
        self._vq, self._discriminator, self._lpips, self._weights = vq, discriminator, lpips, weights
        self._clip = train.clip_norm
        self._optimizers = [
            torch.optim.Adam(network.parameters(), train.learning_rate, (train.b1, train.b2), train.eps, fused=True)
            for network in (vq, discriminator)
        ]

    def step(self, images: Any) -> list[Any]:
        """A step on images [B, 3, H, W]; returns the tokenizer's loss and the gradient norms of both networks."""
        of_vq, of_discriminator = self._optimizers
        latents = self._vq.quant_conv(self._vq.encoder(images))
        quantized, codebook, commitment = self._quantize(latents)
        reconstruction = self._vq.decoder(self._vq.post_quant_conv(quantized))
        loss = functional.mse_loss(reconstruction, images) + codebook + self._weights.commitment * commitment
        loss = loss + self._weights.perceptual * self._lpips(images, reconstruction).mean()
        loss = loss - self._weights.adversarial * self._discriminator(reconstruction).mean()
        norm = self._update(self._vq, of_vq, loss)
        fake = self._discriminator(reconstruction.detach())
        real = self._discriminator(images)
        hinge = 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())
        discriminator_norm = self._update(self._discriminator, of_discriminator, self._weights.adversarial * hinge)
        return [loss.detach(), norm, discriminator_norm]

    def _quantize(self, latents: Any) -> tuple[Any, Any, Any]:
        """Straight-through codes of [B, Q, h, w], codebook term, commitment term without its factor."""
        z = functional.normalize(latents.permute(0, 2, 3, 1), dim=-1)
        codebook = functional.normalize(self._vq.quantize.embedding.weight, dim=-1)
        flat = z.reshape(-1, z.shape[-1])
        distances = (flat**2).sum(1, keepdim=True) + (codebook**2).sum(1) - 2 * flat @ codebook.T
        codes = codebook[distances.argmin(1)].view(z.shape)
        terms = ((codes - z.detach()) ** 2).mean(), ((codes.detach() - z) ** 2).mean()
        return (z + (codes - z).detach()).permute(0, 3, 1, 2), *terms

    def _update(self, network: nn.Module, optimizer: Any, loss: Any) -> Any:
        """Takes a step; returns the norm of the gradient before it is clipped."""
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), self._clip)
        optimizer.step()
        return norm


def to_torch(batches: Sequence[np.ndarray]) -> list[Any]:
    """uint8 [B, H, W, 3] each -> NCHW in [-1, 1]."""
    return [torch.tensor(np.moveaxis(pixels.astype(np.float32) / 127.5 - 1, -1, 1).copy()) for pixels in batches]


def _unit(x: Any) -> Any:
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
