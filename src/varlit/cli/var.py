"""`varlit var fit|validate|test|sweep`: stage 2 on the command line."""

from typing import TYPE_CHECKING

from varlit.cli.verbs import parse_verb

if TYPE_CHECKING:
    from varlit.cli.stage import Stage

CARD = """\
varlit var VERB - stage 2: the transformer that draws token pyramids, scale by scale

  fit        train                       varlit var fit -c d16 --name d16 --gpus 8
  validate   loss on held-out pyramids   varlit var validate --name d16
  test       FID and its companions      varlit var test --name d16
  sweep      ... over guidance, top-k    varlit var sweep d16 --cfg_scale 1,1.5,2

What people turn
  --data.tokens runs/tok/tokens              the token cache, or the name of the tokenizer's run
  --data.batch_size 768                      over all devices
  --model.var.depth 20                       the one dial: width, heads, drop path follow
  --model.optim.lr 1e-4                      per 256 images of batch
  --trainer.max_epochs 200                   how long; --trainer.max_steps also works
  --trainer.accumulate_grad_batches 2        half the memory, the same batch
  --gpus 8                                   auto, a number, 0 = CPU
  --samples.every_n_steps 2000               pictures; 0 = none
  --fid.every_n_steps 10000                  quick FID while training; 0 = none
  --trainer debug                            conf/mode/ and conf/hardware/ by name
  --allow-import my.package                  let settings name classes of that package too

Everything: varlit var fit --help. Without running: --dry_run, or --print_config.
"""
VERBS = ("fit", "validate", "test", "sweep")


def main(argv: list[str]) -> int:
    """Run a verb of stage 2.

    Args:
        argv: What follows `varlit var`.
    """
    verb, args = parse_verb("var", argv, VERBS, CARD)
    if verb is None:
        return 0
    if verb == "sweep":
        from varlit.cli.results.sweep import main as sweep

        return sweep(args)
    from varlit.cli.stage import StageCLI

    StageCLI(build_stage(verb, args), verb, args)
    return 0


def build_stage(verb: str, args: list[str]) -> "Stage":
    """Put stage 2 together, for a verb and what follows it."""
    from varlit.callbacks.completions import Completions
    from varlit.callbacks.export import ExportWeights
    from varlit.callbacks.fid import QuickFID
    from varlit.callbacks.guard import Guard
    from varlit.callbacks.interrupt import SaveOnInterrupt
    from varlit.callbacks.progress import Progress
    from varlit.callbacks.record import RunRecord
    from varlit.callbacks.samples import Samples
    from varlit.callbacks.speed import SpeedWatch
    from varlit.cli.config.model_folder import ModelFolder, stands_in
    from varlit.cli.running.checkpoint import Checkpoint
    from varlit.cli.stage import Stage
    from varlit.data.tokens.module import TokenDataModule
    from varlit.training.var import VARModule

    return Stage(
        name="var",
        model=VARModule,
        data=ModelFolder if stands_in(verb, args) else TokenDataModule,
        callbacks={
            "checkpoint": Checkpoint,
            "guard": Guard,
            "samples": Samples,
            "completions": Completions,
            "fid": QuickFID,
            "progress": Progress,
            "speed": SpeedWatch,
            "record": RunRecord,
            "interrupt": SaveOnInterrupt,
            "export": ExportWeights,
        },
        links={"data.num_classes": "model.num_classes", "data.tokenizer_folder": "model.tokenizer"},
        next_commands={"fit": "varlit sample {name}{root}"},
    )
