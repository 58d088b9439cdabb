"""A plain sampler for VAR, as public code draws: what ours is raced against.

Keys and values that grow by concatenation, AdaLN at every scale, a second row for guidance whether
or not it is used, a sort of the whole vocabulary for top-p, two softmaxes and a multinomial draw
(what FoundationVision/VAR does, in our words). It takes our weights, and in fp32 draws the same
tokens from the same generator.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from varlit.generation.sampler import SamplingSettings
from varlit.models.blocks import MAX_LOG_SCALE, NORM_EPS, Block
from varlit.models.var import VAR
from varlit.models.vqvae import VQVAE

Cache = tuple[Tensor, Tensor] | None  # keys and values so far, (B, heads, L, head_dim)


class PlainSampler:
    """Draws a batch in one function call; guidance and filtering as in official VAR.

    Args:
        var: A transformer with an AdaLN projection in each block.
        tokenizer: Whose tokens it predicts.
    """

    def __init__(self, var: VAR, tokenizer: VQVAE) -> None:
        self.var, self.tokenizer = var, tokenizer

    @torch.no_grad()
    def draw_tokens(
        self, labels: Tensor, settings: SamplingSettings, random: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) of labels (B,), and the latent maps that the decoder takes."""
        var, quantizer, batch_size = self.var, self.tokenizer.quantizer, len(labels)
        condition, positions = self._read(labels)
        x = condition.unsqueeze(1) + var.start_position
        caches: list[Cache] = [None] * len(var.layers)
        f_hat, drawn = quantizer.empty(batch_size), []
        for k in range(var.scales.num_scales):
            x = x + positions[:, var.scales.token_slice(k)]
            strength = settings.cfg_scale * k / max(var.scales.num_scales - 1, 1)
            logits = self._guided_logits(x, condition, caches, strength)
            tokens = plain_draw(logits, settings.top_k, settings.top_p, random)
            drawn.append(tokens)
            f_hat = quantizer.accumulate(f_hat, quantizer.embed(tokens, k), k)
            if k + 1 < var.scales.num_scales:
                x = var.input_projection(quantizer.next_input(f_hat, k)).repeat(2, 1, 1)
        return torch.cat(drawn, dim=1), f_hat

    @torch.no_grad()
    def draw_raster(
        self, labels: Tensor, settings: SamplingSettings, random: torch.Generator | None = None
    ) -> Tensor:
        """Tokens (B, L) of labels (B,) from a transformer over a raster scan, one at a time."""
        var, codebook = self.var, self.tokenizer.quantizer.codebook
        num_steps = var.steps.num_steps
        condition, positions = self._read(labels)
        x = condition.unsqueeze(1) + var.start_position
        caches: list[Cache] = [None] * len(var.layers)
        drawn: list[Tensor] = []
        for k in range(num_steps):
            strength = settings.cfg_scale * k / max(num_steps - 1, 1)
            x = x + positions[:, k : k + 1]
            logits = self._guided_logits(x, condition, caches, strength)
            drawn.append(plain_draw(logits, settings.top_k, settings.top_p, random))
            x = var.input_projection(codebook(drawn[-1])).repeat(2, 1, 1)
        return torch.cat(drawn, dim=1)

    @torch.no_grad()
    def draw(
        self, labels: Tensor, settings: SamplingSettings, random: torch.Generator | None = None
    ) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of labels (B,)."""
        return self.tokenizer.decode_features(self.draw_tokens(labels, settings, random)[1])

    def _read(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        var = self.var
        labels = torch.cat((labels, torch.full_like(labels, var.num_classes)))
        positions = var.level_embedding(var.scales.levels(labels.device)) + var.position
        return var.class_embedding(labels), positions

    def _guided_logits(
        self, x: Tensor, condition: Tensor, caches: list[Cache], strength: float
    ) -> Tensor:
        for i, block in enumerate(self.var.layers):
            x, caches[i] = plain_block(block, x, condition, caches[i])
        logits, unconditional = self._logits(x, condition).float().chunk(2)
        return (1 + strength) * logits - strength * unconditional

    def _logits(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.var.head_adaln(F.silu(condition)).unsqueeze(1).chunk(2, dim=-1)
        return self.var.head(_normed(x.float()) * (scale + 1) + shift)


def plain_block(
    block: Block, x: Tensor, condition: Tensor, cache: Cache
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One block on the tokens of one scale (B, l, C); reads the class anew, grows the cache."""
    parts = block.adaln(F.silu(condition)).unflatten(1, (1, 6, -1)).unbind(2)  # each (B, 1, C)
    gate_attention, gate_mlp, scale_attention, scale_mlp, shift_attention, shift_mlp = parts
    h = _normed(x) * (scale_attention + 1) + shift_attention
    attended, cache = _attend(block, h, cache)
    x = x + attended * gate_attention
    return x + block.mlp(_normed(x) * (scale_mlp + 1) + shift_mlp) * gate_mlp, cache


def _attend(block: Block, h: Tensor, cache: Cache) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    own = block.attention
    bias = torch.cat((own.q_bias, torch.zeros_like(own.q_bias), own.v_bias))
    qkv = F.linear(h, own.qkv.weight, bias).unflatten(2, (3, own.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, l, head_dim)
    # Under autocast a normalised key is fp32, and so is the cache of keys.
    q = F.normalize(q, dim=-1) * own.log_scale.clamp_max(MAX_LOG_SCALE).exp()
    k = F.normalize(k, dim=-1)
    if cache is not None:
        k, v = torch.cat((cache[0], k), dim=2), torch.cat((cache[1], v), dim=2)
    out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, scale=1.0)
    return own.projection(out.transpose(1, 2).flatten(2)), (k, v)


def plain_draw(
    logits: Tensor, top_k: int, top_p: float, random: torch.Generator | None = None
) -> Tensor:
    """Top-k, top-p by an ascending sort of all codes, one multinomial draw for each position.

    Args:
        logits: (B, l, V).
        top_k: Codes that are kept, ties with the last of them too; 0 = all.
        top_p: Probability that is kept; 0 = all.
        random: Torch's global stream by default.

    Returns:
        (B, l).
    """
    if top_k > 0:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p > 0:
        ascending, order = logits.sort(dim=-1, descending=False)
        is_out = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        is_out[..., -1:] = False
        logits = logits.masked_fill(is_out.scatter(-1, order, is_out), -torch.inf)
    probability = logits.softmax(dim=-1).flatten(0, 1)
    drawn = torch.multinomial(probability, num_samples=1, replacement=True, generator=random)
    return drawn.view(logits.shape[:2])


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
