"""The stage-2 network: a transformer that predicts the next token map from all coarser ones.

Or, as a baseline, the next token from all before it: which tokens a step predicts is data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varlit.errors import UserError
from varlit.models.attention import (
    AttentionChoice,
    AttentionPlan,
    check_choice,
    plan_attention,
)
from varlit.models.blocks import Block, modulate
from varlit.models.config import TokenizerConfig, VARConfig, check_share
from varlit.models.initialization import initialize_var
from varlit.models.sampling_state import ClassSignals, SamplingState, open_caches
from varlit.ops.scales import Scales

# CUDA graphs ("reduce-overhead") would record one graph for each block, and hold memory for each.
CompileMode = Literal["none", "default", "max-autotune-no-cudagraphs"]
Checkpointing = Literal["none", "blocks"]
T = TypeVar("T")


class VAR(nn.Module):
    """Visual autoregressive transformer (Tian et al. 2024, section 3.2).

    How it computes is set from outside, at any time, and is part of no file: `use_attention`,
    `checkpoint_activations`, `compile_blocks`.

    Args:
        config: Depth and its companions.
        tokenizer: Whose tokens are predicted: gives V, the code dimension and the scales.
        num_classes: Labels 0 to num_classes - 1; `num_classes` itself is the unconditional one.

    Attributes:
        scales: The tokenizer's maps.
        steps: Which tokens are predicted together: the scales themselves, or with `order` raster
            each token by itself.

    Raises:
        UserError: If the order does not fit the tokenizer.
    """

    def __init__(self, config: VARConfig, tokenizer: TokenizerConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.tokenizer_config = tokenizer
        self.scales, self.steps = Scales(tokenizer.scales), config.steps(tokenizer.scales)
        width, num_tokens = config.resolved_width, self.scales.num_tokens
        self.class_embedding = nn.Embedding(num_classes + 1, width)
        self.input_projection = nn.Linear(tokenizer.codebook_dim, width)
        self.start_position = nn.Parameter(torch.empty(1, self.steps.lengths[0], width))
        self.position = nn.Parameter(torch.empty(1, num_tokens, width))
        self.level_embedding = nn.Embedding(self.scales.num_scales, width)
        rise = config.resolved_drop_path / max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(Block(config, i * rise) for i in range(config.depth))
        if config.shared_adaln:
            self.shared_adaln = nn.Linear(width, 6 * width)
        self.head_adaln = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, tokenizer.codebook_size)
        self.attention_backend: AttentionChoice = "auto"
        initialize_var(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.position.device

    @property
    def layers(self) -> list[Block]:
        """The blocks, first to last."""
        return cast(list[Block], list(self.blocks))

    def use_attention(self, choice: AttentionChoice) -> None:
        """Choose how training attends, see `varlit.models.attention`; logits stay as they are.

        Args:
            choice: `auto` is `flex` on CUDA for more than 1,000 tokens (512 px), else `segmented`;
                `dense` is the reference. Whether the device can is asked at the next pass.

        Raises:
            UserError: If there is no such choice.
        """
        check_choice(choice)
        self.attention_backend = choice

    def attention_plan(self, device: torch.device) -> AttentionPlan:
        """The choice made concrete, with its masks; made once per device."""
        choice = self.attention_backend
        key = f"attention {choice}"
        return self._constant(key, device, lambda: plan_attention(self.steps, choice, device))

    @property
    def checkpoint_activations(self) -> Checkpointing:
        """What training computes again in the backward pass instead of keeping it.

        `blocks` keeps one (B, L, C) a block, for a third more operations. Gradients are the same.

        Raises:
            UserError: When set to something else.
        """
        return "blocks" if self.layers[0].is_checkpointed else "none"

    @checkpoint_activations.setter
    def checkpoint_activations(self, what: Checkpointing) -> None:
        if what not in get_args(Checkpointing):
            known = " or ".join(get_args(Checkpointing))
            raise UserError(f"checkpoint_activations must be {known}; got `{what}`")
        for block in self.layers:
            block.is_checkpointed = what == "blocks"

    def compile_blocks(self, mode: CompileMode = "default", memory_budget: float = 1.0) -> None:
        """Compile what all blocks have in common, once, for training at fixed shapes.

        The first step compiles, which takes seconds to minutes. Sampling and validation stay
        eager. Labels and stochastic depth are drawn outside, so they stay random.

        Args:
            mode: Of `torch.compile`; `none` makes the blocks eager again.
            memory_budget: Share of a block's activations that is kept for the backward pass; the
                compiler computes the cheapest of the rest again. 1 = all, 0 = `blocks` of
                `checkpoint_activations`. It is a setting of torch for the whole process.

        Raises:
            UserError: If there is no such mode or the budget is no share.
        """
        if mode not in get_args(CompileMode):
            known = ", ".join(get_args(CompileMode))
            raise UserError(f"compile mode must be one of {known}; got `{mode}`")
        check_share("memory_budget", memory_budget, up_to_one=True)
        if mode == "none":
            for block in self.layers:
                block.compiled = None
            return
        # Torch's compiler takes seconds to import.
        import torch._dynamo.config
        import torch._functorch.config

        torch._functorch.config.activation_memory_budget = memory_budget
        # Regions as small as a block overlap with DDP by themselves; DDP's own splitting of graphs
        # refuses FlexAttention.
        torch._dynamo.config.optimize_ddp = False
        compiled = torch.compile(Block.transform, fullgraph=True, dynamic=False, mode=mode)
        for block in self.layers:
            block.compiled = compiled

    def forward(self, labels: Tensor, teacher_inputs: Tensor) -> Tensor:
        """Logits of all tokens under teacher forcing.

        Args:
            labels: Classes (B,). While training, a share `class_dropout` of them is replaced by
                the unconditional class; never in eval mode.
            teacher_inputs: (B, L - l_0, codebook_dim), from `VQVAE.teacher_inputs` in this order.

        Returns:
            (B, L, V).
        """
        labels = self.check_labels(labels)
        wanted = (
            len(labels),
            self.steps.num_tokens - self.steps.lengths[0],
            self.tokenizer_config.codebook_dim,
        )
        if tuple(teacher_inputs.shape) != wanted:
            raise UserError(
                f"teacher_inputs must have shape {list(wanted)}, as tokenizer.teacher_inputs gives "
                f"for {len(labels)} labels and order {self.config.order}; got "
                f"{list(teacher_inputs.shape)}"
            )
        if self.training and self.config.class_dropout > 0:
            dropped = torch.rand(labels.shape, device=labels.device) < self.config.class_dropout
            labels = labels.masked_fill(dropped, self.num_classes)
        start = self.class_embedding(labels)
        with torch.autocast(start.device.type, enabled=False):
            x = torch.cat((self._start_tokens(start), self._project(teacher_inputs)), dim=1)
            x = x + self._positions()
        condition = self._condition(start)
        plan = self.attention_plan(x.device)
        for block in self.layers:
            x = block(x, condition, plan)
        return self._logits(x, self._head_modulation(start))

    def read_classes(self, labels: Tensor | None = None) -> ClassSignals:
        """What classes say to the blocks and the head.

        Args:
            labels: Classes (B,); all of them, the unconditional one last, where there are none.
        """
        if labels is None:
            labels = torch.arange(self.num_classes + 1, device=self.device)
        start = self.class_embedding(self.check_labels(labels))
        condition = self._condition(start)
        modulations = [block.modulation(condition) for block in self.layers]
        return ClassSignals(start, modulations, self._head_modulation(start))

    def begin(self, labels: Tensor, table: ClassSignals | None = None) -> SamplingState:
        """Prepare to draw: read the classes, join biases and allocate the cache, all of it once.

        Args:
            labels: Classes (B,).
            table: `read_classes()` of these same weights, to gather from; the logits differ by
                roundings only.
        """
        labels = self.check_labels(labels)
        signals = self.read_classes(labels) if table is None else table.rows(labels)
        heads, head_dim = self.config.resolved_heads, self.config.head_dim
        shape = (len(labels), heads, self.steps.num_tokens, head_dim)
        # The type of what linear layers give here, under autocast too.
        caches = open_caches(self.layers, shape, signals.head[0].dtype)
        return SamplingState(signals, caches)

    def advance(self, state: SamplingState, step_input: Tensor | None = None) -> Tensor:
        """Logits of the next step, given what was drawn so far.

        Args:
            state: From `begin`; moves one step on.
            step_input: (B, l_k, codebook_dim), `next_input` of the canvas; None at the first step.

        Returns:
            (B, l_k, V).
        """
        k, signals = state.step, state.signals
        x = self._start_tokens(signals.start) if step_input is None else self._project(step_input)
        x = x + self._positions(self.steps.token_slice(k))
        for block, modulation, cache in zip(
            self.blocks, signals.modulations, state.caches, strict=True
        ):
            x = block(x, modulation, cache=cache)
        state.step = k + 1
        return self._logits(x, signals.head)

    def check_labels(self, labels: Tensor) -> Tensor:
        """Return the labels as int64.

        Raises:
            UserError: If one is outside 0 to num_classes (which is the unconditional one).
        """
        # A look at the values waits for the GPU; there the embedding's own assertion must do.
        out = labels.device.type == "cpu" and len(labels) > 0
        if out and (labels.min() < 0 or labels.max() > self.num_classes):
            raise UserError(
                f"labels must lie in 0..{self.num_classes - 1} ({self.num_classes} = "
                f"unconditional); got {int(labels.min())}..{int(labels.max())}"
            )
        return labels.long()

    def _start_tokens(self, start: Tensor) -> Tensor:
        return start.unsqueeze(1) + self.start_position  # (B, l_0, C)

    def _project(self, inputs: Tensor) -> Tensor:
        return self.input_projection(inputs.to(self.input_projection.weight.dtype))

    def _positions(self, part: slice = slice(None)) -> Tensor:
        """Position plus level embeddings of a part of L.  # (1, l, C)"""
        return self.level_embedding(self._levels(self.device)[part]) + self.position[:, part]

    def _signal(self, start: Tensor) -> Tensor:
        """What AdaLN reads, in the type of its weights.  # (B, C)"""
        return F.silu(start).to(self.head_adaln.weight.dtype)

    def _condition(self, start: Tensor) -> Tensor:
        condition = self._signal(start)
        if self.config.shared_adaln:
            return self.shared_adaln(condition).unflatten(1, (6, -1))
        return condition

    def _head_modulation(self, start: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.head_adaln(self._signal(start)).unsqueeze(1).chunk(2, dim=-1)
        return scale + 1, shift

    def _logits(self, x: Tensor, head: tuple[Tensor, Tensor]) -> Tensor:
        return self.head(modulate(x.float(), *head).to(self.head.weight.dtype))

    def _levels(self, device: torch.device) -> Tensor:
        # Made under inference_mode, it could never be part of a backward pass.
        with torch.inference_mode(False):
            return self._constant("levels", device, lambda: self.scales.levels(device))

    def _constant(self, name: str, device: torch.device, make: Callable[[], T]) -> T:
        """Levels and masks, built once per device and never part of the state."""
        constants = self.__dict__.setdefault("_constants", {})
        if (name, device) not in constants:
            constants[name, device] = make()
        return cast(T, constants[name, device])

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles take: they build their own constants."""
        return {name: value for name, value in self.__dict__.items() if name != "_constants"}
