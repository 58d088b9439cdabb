"""`varlit tokenizer fit|validate|test|predict`: stage 1 on the command line."""

from typing import TYPE_CHECKING

from varlit.cli.verbs import parse_verb

if TYPE_CHECKING:
    from varlit.cli.stage import Stage

CARD = """\
varlit tokenizer VERB - stage 1: images to token pyramids and back

  fit        train                      varlit tokenizer fit -c imagenet256 --name tok --gpus 8
  validate   measure held-out images    varlit tokenizer validate --name tok
  test       a table and metrics.json   varlit tokenizer test --name tok
  predict    write the token cache      varlit tokenizer predict --name tok

What people turn
  --data.root photos/                        your images, in class folders; --data.image_size 256
  --data DigitsDataModule                    another source of images
  --data.batch_size 64                       over all devices
  --trainer.accumulate_grad_batches 2        half the memory, the same batch
  --model.tokenizer.codebook_size 4096       codes; also codebook_dim, channels, scales
  --model.loss.disc_weight 0                 no discriminator; perceptual_weight 0: no LPIPS
  --model.codebook.init kmeans               codes start on data; restart_below revives dead ones
  --model.init_from tokenizer-vqgan          weights of another run; scales may differ
  --model.optim.lr 1e-4                      per 256 images of batch
  --trainer.max_epochs 20                    how long; --trainer.max_steps also works
  --gpus 8                                   auto, a number, 0 = CPU
  --reconstructions.every_n_steps 500        pictures; 0 = none
  --trainer debug                            conf/mode/ and conf/hardware/ by name
  --allow-import my.package                  let settings name classes of that package too

Everything: varlit tokenizer fit --help. Without running: --dry_run, or --print_config.
"""
VERBS = ("fit", "validate", "test", "predict")


def main(argv: list[str]) -> int:
    """Run a verb of stage 1.

    Args:
        argv: What follows `varlit tokenizer`.
    """
    verb, args = parse_verb("tokenizer", argv, VERBS, CARD)
    if verb is None:
        return 0
    from varlit.cli.stage import StageCLI

    StageCLI(build_stage(), verb, args)
    return 0


def build_stage() -> "Stage":
    """Put stage 1 together."""
    from varlit.callbacks.best import KeepBest
    from varlit.callbacks.codebook import CodebookWatch
    from varlit.callbacks.export import ExportWeights
    from varlit.callbacks.guard import Guard
    from varlit.callbacks.interrupt import SaveOnInterrupt
    from varlit.callbacks.progress import Progress
    from varlit.callbacks.reconstructions import Reconstructions
    from varlit.callbacks.record import RunRecord
    from varlit.callbacks.speed import SpeedWatch
    from varlit.callbacks.token_writer import TokenWriter
    from varlit.cli.running.checkpoint import Checkpoint
    from varlit.cli.stage import Stage
    from varlit.data.digits import DigitsDataModule  # noqa: F401  found by `--data <name>`
    from varlit.data.imagenet import ImageNetDataModule  # noqa: F401  found by `--data <name>`
    from varlit.data.images import ImageDataModule
    from varlit.training.tokenizer import TokenizerModule

    return Stage(
        name="tokenizer",
        model=TokenizerModule,
        data=ImageDataModule,
        any_data=True,
        callbacks={
            "checkpoint": Checkpoint,
            "guard": Guard,
            "reconstructions": Reconstructions,
            "codebook": CodebookWatch,
            "progress": Progress,
            "speed": SpeedWatch,
            "record": RunRecord,
            "interrupt": SaveOnInterrupt,
            "export": ExportWeights,
            "best": KeepBest,
            "cache": TokenWriter,
        },
        turned_off={
            "predict": {"model.loss.perceptual_weight": 0.0, "model.loss.perceptual_net": "vgg"}
        },
        links={"data.image_size": "model.image_size"},
        next_commands={
            "fit": "varlit tokenizer predict --name {name}{root}",
            "predict": "varlit var fit -c RECIPE --data.tokens {run_dir}/tokens{root}",
        },
    )
