"""Drawing fast on CUDA: one recorded graph from labels and random numbers to images.

Everything that `Sampler` launches, all steps with their filters and draws and the decoder, is
recorded once for a batch size and settings, and replayed by a single launch.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from varlit.generation.editing.known import KnownTokens
from varlit.generation.packed import open_stepwise
from varlit.generation.random_numbers import GivenUniforms, ImageSeeds, RandomNumbers
from varlit.generation.recorded.recorder import CudaRecorder, Recorder
from varlit.generation.recorded.recording import GraphKey, Recording
from varlit.generation.sampler import Drawn, DrawnScale, Sampler, SamplingSettings
from varlit.models.decoder_speed import (
    ALL_WAYS,
    EAGER_WAYS,
    Decode,
    build_decoder,
    choose_decoder,
    prefer_decoder,
)
from varlit.models.drawing_copy import (
    autocast_dtype,
    compile_drawing,
    drawing_copy,
    many_graphs,
)
from varlit.models.var import VAR, CompileMode
from varlit.models.vqvae import VQVAE

MAX_STEPS = 64  # of a recording; a raster scan has a step for each token
COMPILE_FROM_IMAGES = 10_000  # compiling takes minutes, recording alone a few batches

_NO_MEMORY = "no memory"


class FastSampler(Sampler):
    """Draws as `Sampler` does, by recordings; what cannot be recorded is drawn by a `Sampler`.

    Weights are cast once, when the first batch is drawn: make a new one after training on.

    Args:
        var: Draws.
        tokenizer: Decodes.
        dtype: Of matrix products, such as bfloat16; None = that of the autocast around `draw`, or
            fp32. The decoder follows, see `varlit.models.decoder_speed`.
        compile_mode: Of the blocks and the decoder, see `compile_drawing`; `none` only records.
        recorder: How to record; by CUDA graphs when None.
        max_graphs: Recordings that are kept; the one that was used longest ago goes first.
        times_decoders: Decode in the way that the clock finds fastest, here and now, and not in
            that of the fixed order: pixels may then differ from run to run.
    """

    def __init__(
        self,
        var: VAR,
        tokenizer: VQVAE,
        dtype: torch.dtype | None = None,
        compile_mode: CompileMode = "default",
        recorder: Recorder | None = None,
        max_graphs: int = 4,
        times_decoders: bool = False,
    ) -> None:
        super().__init__(var, tokenizer)
        self.dtype, self.compile_mode, self.max_graphs = dtype, compile_mode, max_graphs
        self.recorder = CudaRecorder(var.device) if recorder is None else recorder
        self.times_decoders = times_decoders
        self._plain: dict[torch.dtype | None, Sampler] = {}
        self._recordings: OrderedDict[GraphKey, Recording] = OrderedDict()
        self._copies: dict[torch.dtype | None, VAR] = {}
        self._decoders: dict[str, Decode] = {}
        self._padded: set[GraphKey] = set()
        self._failed: set[GraphKey] = set()
        self.told: set[str] = set()
        self._is_given_up = False
        self._lock = threading.Lock()

    def steps(
        self,
        labels: Tensor,
        settings: SamplingSettings,
        random: RandomNumbers = None,
        known: KnownTokens | None = None,
    ) -> Iterator[DrawnScale]:
        """As `Sampler.steps`: whoever watches each step watches them one by one."""
        return self.plain().steps(labels, settings, random, known)

    def plain(self) -> Sampler:
        """What draws without recording, with weights cast once for the precision around it."""
        dtype = self._precision()
        if dtype not in self._plain:
            self._plain[dtype] = Sampler(self.var, self.tokenizer, dtype)
        return self._plain[dtype]

    @torch.no_grad()
    def draw(
        self,
        labels: Tensor,
        settings: SamplingSettings,
        random: RandomNumbers = None,
        with_frames: bool = False,
        known: KnownTokens | None = None,
    ) -> Drawn:
        """As `Sampler.draw`."""
        has_own_numbers = isinstance(random, ImageSeeds | GivenUniforms)
        if why := hindrance(self.var, settings, has_own_numbers, known):
            self._tell(f"{why}, so pictures are drawn without a CUDA graph")
            return self.plain().draw(labels, settings, random, with_frames, known)
        labels = self.var.check_labels(labels)
        uniform = self._numbers(random)
        with self._lock:
            key = GraphKey(len(labels), settings, with_frames, self._precision())
            recording = self._find(self._padded_to(key))
            if recording is not None:
                return recording.draw(labels, uniform, known)
        given = GivenUniforms(uniform.to(self.var.device))
        return self.plain().draw(labels, settings, given, with_frames, known)

    def _numbers(self, random: RandomNumbers) -> Tensor:
        """All random numbers of a batch.  # (B, L)"""
        assert isinstance(random, ImageSeeds | GivenUniforms)
        whole, cpu = slice(0, self.var.steps.num_tokens), torch.device("cpu")
        return random.numbers if isinstance(random, GivenUniforms) else random.uniform(whole, cpu)

    def _precision(self) -> torch.dtype | None:
        return autocast_dtype(self.var.device) if self.dtype is None else self.dtype

    def _padded_to(self, key: GraphKey) -> GraphKey:
        """The next larger recording for a size that comes for the first time, as a last batch does.

        A size that comes again is worth a recording of its own.
        """
        if key in self._recordings or key in self._padded:
            return key
        larger = [
            other
            for other in self._recordings
            if other.batch_size > key.batch_size
            and replace(other, batch_size=key.batch_size) == key
        ]
        if not larger:
            return key
        self._padded.add(key)
        return min(larger, key=lambda other: other.batch_size)

    def _find(self, key: GraphKey) -> Recording | None:
        """A recording, made where there is none; None where it cannot be made."""
        if key in self._recordings:
            self._recordings.move_to_end(key)
            return self._recordings[key]
        if self._is_given_up or key in self._failed:
            return None
        while len(self._recordings) >= self.max_graphs:
            self._recordings.popitem(last=False)
        why = self._attempt(key)
        if why is None:
            return self._recordings[key]
        had_others = bool(self._recordings)
        self._forget()
        if why == _NO_MEMORY and had_others:
            return self._find(key)
        if why == _NO_MEMORY:
            self._failed.add(key)
            why = f"the GPU has no memory to record batches of {key.batch_size}"
        else:
            self._is_given_up = True
            why = f"recording failed ({why})"
        self._tell(f"{why}, so pictures are drawn without a CUDA graph")
        return None

    def _attempt(self, key: GraphKey) -> str | None:
        """Record; None if that worked, else why not.

        In words: the error itself would hold on to the memory that the attempt had taken.
        """
        try:
            self._recordings[key] = self._record(key)
        except torch.OutOfMemoryError:
            return _NO_MEMORY
        except Exception as error:
            # Compilers and drivers fail in many ways; pictures can be drawn without them.
            return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return None

    def _record(self, key: GraphKey) -> Recording:
        with many_graphs(self.compile_mode):
            var, decode = self._ready(key.dtype), self._decoder(key)
            return Recording(_Recorded(var, self.tokenizer, decode), key, self.recorder)

    def _ready(self, dtype: torch.dtype | None) -> VAR:
        """The transformer with cast weights and compiled blocks, made once."""
        if dtype not in self._copies:
            ready = drawing_copy(self.plain().var)
            compile_drawing(ready, self.compile_mode)
            self._copies[dtype] = ready
        return self._copies[dtype]

    def _decoder(self, key: GraphKey) -> Decode:
        """The decoder for half precision; for fp32 the tokenizer itself."""
        if key.dtype is None:
            return self.tokenizer.decode_features
        ways = EAGER_WAYS if self.compile_mode == "none" else ALL_WAYS
        if self.times_decoders:
            way = choose_decoder(self.tokenizer, key.batch_size, ways).way
        else:
            way = prefer_decoder(self.tokenizer, key.batch_size, ways)
        if way not in self._decoders:
            self._decoders[way] = build_decoder(self.tokenizer, way)
        return self._decoders[way]

    def _forget(self) -> None:
        """Let all recordings go, with their memory."""
        self._recordings.clear()
        if self.var.device.type == "cuda":
            torch.cuda.empty_cache()

    def _tell(self, sentence: str) -> None:
        if sentence not in self.told:
            self.told.add(sentence)
            warnings.warn(sentence, stacklevel=4)


class _Recorded(Sampler):
    """A sampler with another way to decode."""

    def __init__(self, var: VAR, tokenizer: VQVAE, decode: Callable[[Tensor], Tensor]) -> None:
        super().__init__(var, tokenizer)
        self._decode = decode

    def decode(self, features: Tensor) -> Tensor:
        return self._decode(features)


def hindrance(
    var: VAR, settings: SamplingSettings, has_own_numbers: bool, known: KnownTokens | None
) -> str:
    """Why a batch cannot be recorded; empty if it can.

    Args:
        var: Draws.
        settings: Guidance and filtering.
        has_own_numbers: Whether the random numbers belong to the images, as those of seeds do.
        known: Tokens that are given.
    """
    if var.steps.num_steps > MAX_STEPS:
        return f"this VAR draws in {var.steps.num_steps} steps"
    if settings.more_smooth:
        return "more_smooth needs a random number for each code"
    if not has_own_numbers:
        return "a stream of random numbers belongs to no image"
    if known is not None and not known.is_fixed:
        return "known tokens are corrected while drawing"
    return ""


def open_sampler(
    var: VAR,
    tokenizer: VQVAE,
    fast: bool | None = None,
    *,
    dtype: torch.dtype | None = None,
    num_images: int | None = None,
) -> Sampler:
    """The sampler that fits the device and the amount of work.

    Args:
        var: Draws.
        tokenizer: Decodes, on the same device.
        fast: True = recorded and compiled, with the decoder that the clock finds fastest, which
            takes minutes before the first picture. None = recorded on CUDA, compiled from 10,000
            images on. On a CPU both pack the weights. False = nothing of this.
        dtype: Of matrix products; None = that of the autocast around each draw, or fp32.
        num_images: How many will be drawn, where known.
    """
    if fast is not False and var.device.type == "cuda":
        is_long = num_images is not None and num_images >= COMPILE_FROM_IMAGES
        mode: CompileMode = "default" if fast or is_long else "none"
        return FastSampler(var, tokenizer, dtype, mode, times_decoders=bool(fast))
    if fast:
        warnings.warn(
            f"CUDA graphs need a CUDA GPU, so pictures are drawn on the {var.device.type} as usual",
            stacklevel=2,
        )
    return Sampler(var, tokenizer, dtype) if fast is False else open_stepwise(var, tokenizer, dtype)
