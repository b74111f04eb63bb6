"""`python -m export.embedded`: train the embedded checkpoint or a variant of it again, from nothing but this folder."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch

from export.embedded.autoencoder import PLAN as VAE_PLAN
from export.embedded.autoencoder import pictures, reconstruction_psnr, train_vae
from export.embedded.denoiser import TEXT_PLAN, UNET_PLAN, train_text_encoder, train_unet
from export.embedded.finetuning import BASE_FOLDER, Base
from export.embedded.publish import publish
from export.embedded.variants import VARIANTS
from export.embedded.vocabulary import load_tokenizer, write_tokenizer


def main() -> None:
    """Every stage resumes from `--work`; the checkpoint is written to `--out`."""
    parser = argparse.ArgumentParser(prog="python -m export.embedded", description=__doc__)
    parser.add_argument("--variant", choices=VARIANTS, help="of the checkpoint that is there, instead of training it")
    parser.add_argument("--out", type=Path, help="the checkpoint's folder (default: where the project has it)")
    parser.add_argument("--work", type=Path, default=Path("out/training"), help="logs and resumable states")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    for plan in (VAE_PLAN, TEXT_PLAN, UNET_PLAN):
        parser.add_argument(f"--{plan.name}-steps", type=int, default=plan.steps, help="of the checkpoint itself")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.variant:
        out = options.out or BASE_FOLDER.with_name(f"{BASE_FOLDER.name}-{options.variant}")
        VARIANTS[options.variant](Base.load(), options.work, out)
    else:
        train_base(options, options.out or BASE_FOLDER)


def train_base(options: argparse.Namespace, out: Path) -> None:
    """Train and publish the checkpoint itself."""
    write_tokenizer(options.work / "tokenizer")
    tokenizer = load_tokenizer(options.work / "tokenizer")
    vae = train_vae(options.work, replace(VAE_PLAN, steps=options.vae_steps))
    logging.info("VAE reconstruction: %.2f dB", reconstruction_psnr(vae, pictures(200, seed=5)))
    encoder = train_text_encoder(tokenizer, options.work, replace(TEXT_PLAN, steps=options.text_steps))
    encoder, unet = train_unet(tokenizer, encoder, vae, options.work, replace(UNET_PLAN, steps=options.unet_steps))
    publish(out, options.work / "tokenizer", tokenizer, encoder, unet, vae)


if __name__ == "__main__":
    main()
